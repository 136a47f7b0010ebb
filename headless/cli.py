"""``lora-workbench``: one command per job; exit code 0 done, 1 failed while running, 2 wrong input.

Interrupted before it has begun it ends with 130, as shells count it. To tell that from a failure,
what takes long to import (torch) is imported after its beginning.

What is asked for goes to standard output, everything else to standard error. With ``--json``
standard output is exactly one JSON document; after an error without a result it is
``{"error": {"headline", "facts", "fix"}}``.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import NoReturn

from ..lora_core.errors import FailedError, LoraError
from ..version import VERSION

DONE, FAILED, WRONG_INPUT, NOT_BEGUN = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage like every other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise self._refusal(message, f"see `{self.prog} --help`.")

    def refuse_unknown(self, arguments: Sequence[str]) -> NoReturn:
        """Raise the error for arguments that nothing takes, with the option most like the first."""
        name = arguments[0].partition("=")[0]
        near = get_close_matches(name, self._option_string_actions, n=1)
        fix = f"use {near[0]!r}." if near else f"see `{self.prog} --help`."
        raise self._refusal(f"Unrecognized arguments: {' '.join(arguments)}", fix)

    def _refusal(self, message: str, fix: str) -> LoraError:
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        return LoraError(f"{message[:1].upper()}{message[1:]}.", {"Usage": usage}, fix)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # A terminated command cleans up like an interrupted one; so does one whose terminal closes.
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
    try:
        return _run(arguments)
    except LoraError as error:
        _show_error(error, as_json="--json" in arguments)
        return FAILED if isinstance(error, FailedError) else WRONG_INPUT
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); keep Python from writing again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        problem = error.strerror or str(error)
        facts = {"File": error.filename} if error.filename else {}
        fix = "check the permissions and the space on the disk."
        _show_error(LoraError(f"The system refused: {problem}.", facts, fix), "--json" in arguments)
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; no file was changed.\n")
        return FAILED


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    if not arguments:
        parser.print_help()
        return DONE
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.refuse_unknown(unknown)
    code: int = options.run(options)
    sys.stdout.flush()
    return code


def _parser() -> argparse.ArgumentParser:
    with _ended_by_interrupt():
        from . import demo, inspect_command, merge_command, run_command, train_command

    modules = {
        "inspect": inspect_command,
        "merge": merge_command,
        "run": run_command,
        "train": train_command,
        "demo": demo,
    }
    parser = _Parser(
        prog="lora-workbench",
        description="Inspect, stack, weight, merge, un-merge and train LoRAs.",
        epilog="Exit codes: 0 done, 1 failed while running, 2 the input is wrong, 130 interrupted "
        "before it began.",
    )
    parser.add_argument("--version", action="version", version=f"lora-workbench {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in modules.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    return parser


@contextmanager
def _ended_by_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once: imports turn an exception into others."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        os.write(sys.stderr.fileno(), b"Interrupted before anything was done.\n")
        os._exit(NOT_BEGUN)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _show_error(error: LoraError, as_json: bool) -> None:
    from .messages import write_error

    write_error(error)
    if as_json:
        facts = {name: str(value) for name, value in error.facts.items()}
        document = {"error": {"headline": error.headline, "facts": facts, "fix": error.fix}}
        print(json.dumps(document, indent=2))


if __name__ == "__main__":
    sys.exit(main())
