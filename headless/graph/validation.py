"""Is a prompt fit to run? Answers as POST /prompt of ComfyUI 0.30 gives them.

Where ComfyUI's order depends on the hashing of strings (outputs of a prompt, inputs of a node),
ours is that of the prompt and of the class.
"""

import traceback
from collections.abc import Collection, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .async_calls import AsyncCalls
from .custom_check import CustomCheck
from .input_errors import (
    Error,
    conversion_error,
    converted,
    error,
    type_name,
    unwrapped,
    value_error,
)
from .node_classes import InputInfo, LiteralList, NodeSpecs, constants, copied
from .prompt_errors import class_error, shape_error
from .socket_types import fits


@dataclass(frozen=True)
class Validation:
    """What was found.

    Attributes:
        ok: Whether something can run; bad outputs are then left out, and in ``node_errors``.
        error: Why nothing can run: type, message, details, extra_info; None when ``ok``.
        outputs: Ids of the output nodes that can run, in the order of the prompt.
        node_errors: Node id to ``{"errors": [...], "dependent_outputs": [...], "class_type": ""}``.
        prompt: The prompt with its values converted to the types of their inputs.
    """

    ok: bool
    error: Error | None
    outputs: tuple[str, ...] = ()
    node_errors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)


class _Verdict(NamedTuple):
    """On one node: a node below an invalid one is invalid without errors of its own."""

    valid: bool
    errors: list[Error]


_Check = Generator[str, _Verdict, _Verdict]  # yields ids of nodes whose verdict it needs


def validate(
    prompt: Mapping[str, Any], classes: Mapping[str, type], targets: Collection[str] | None = None
) -> Validation:
    """Check a prompt and convert its values.

    Args:
        prompt: A graph in API form; it is not changed.
        classes: V1 node classes by name.
        targets: Ids of the outputs to run, or None for all.

    Returns:
        The answer. Graphs that are no graphs at all are refused as ``invalid_prompt``.
    """
    specs = NodeSpecs(classes)
    refusal = shape_error(prompt) or class_error(prompt, specs)
    if refusal:
        return Validation(False, refusal)
    outputs = [
        node_id
        for node_id, node in prompt.items()
        if specs[node["class_type"]].is_output and (targets is None or node_id in targets)
    ]
    if not outputs:
        return Validation(False, error("prompt_no_outputs", "Prompt has no outputs", ""))
    with closing(AsyncCalls()) as calls:
        return _Validator(copied(prompt), specs, calls).checked(outputs)


class _Validator:
    def __init__(self, prompt: dict[str, Any], specs: NodeSpecs, calls: AsyncCalls) -> None:
        self._prompt, self._specs, self._calls = prompt, specs, calls
        self._verdicts: dict[str, _Verdict] = {}

    def checked(self, outputs: list[str]) -> Validation:
        """The verdict on every output, with all errors found on the way."""
        good, reasons, node_errors = [], [], dict[str, dict[str, Any]]()
        for output in outputs:
            verdict = self._verdict_on_output(output)
            if verdict.valid:
                good.append(output)
                continue
            reasons += verdict.errors
            # As ComfyUI: every error known by now counts against this output.
            for node_id, (valid, errors) in self._verdicts.items():
                if not valid and errors:
                    entry = node_errors.setdefault(node_id, self._node_error(node_id, errors))
                    entry["dependent_outputs"].append(output)
        if good:
            return Validation(True, None, tuple(good), node_errors, self._prompt)
        details = "\n".join(f"{reason['message']}: {reason['details']}" for reason in reasons)
        refusal = error(
            "prompt_outputs_failed_validation", "Prompt outputs failed validation", details
        )
        return Validation(False, refusal, (), node_errors, self._prompt)

    def _node_error(self, node_id: str, errors: list[Error]) -> dict[str, Any]:
        class_type = self._prompt[node_id]["class_type"]
        return {"errors": errors, "dependent_outputs": [], "class_type": class_type}

    def _verdict_on_output(self, output: str) -> _Verdict:
        try:
            return self._walk(output)
        except Exception as cause:  # noqa: BLE001  node classes may raise anything
            reason = error(
                "exception_during_validation",
                "Exception when validating node",
                str(cause),
                exception_type=type_name(type(cause)),
                traceback=traceback.format_tb(cause.__traceback__),
            )
            self._verdicts[output] = _Verdict(False, [reason])
            return self._verdicts[output]

    def _walk(self, root: str) -> _Verdict:
        """Run the check of a node and of all above it, without recursion: graphs may be deep.

        A check that raises does so in the check that asked for it.
        """
        if root in self._verdicts:
            return self._verdicts[root]
        path = {root: self._check(root)}
        answer: _Verdict | Exception | None = None
        while True:
            node_id, check = next(reversed(path.items()))
            try:
                if isinstance(answer, Exception):
                    wanted = check.throw(answer)
                else:
                    wanted = check.send(answer)  # type: ignore[arg-type]  # None starts it
            except StopIteration as done:
                answer = done.value
                del path[node_id]
            except Exception as cause:
                answer = cause
                del path[node_id]
                if not path:
                    raise
            else:
                answer = self._verdicts.get(wanted) or self._cycle(wanted, path)
                if answer is None:
                    path[wanted] = self._check(wanted)
            if not path:
                return answer  # type: ignore[return-value]  # a check ends with a verdict

    def _cycle(self, node_id: str, path: Mapping[str, object]) -> _Verdict | None:
        if node_id not in path:
            return None
        ids = [*path]
        nodes = ids[ids.index(node_id) :]
        classes = (f"{node} ({self._prompt[node]['class_type']})" for node in [*nodes, node_id])
        details = " -> ".join(classes)
        for node in nodes:
            reason = error(
                "dependency_cycle",
                "Dependency cycle detected",
                details,
                node_id=node,
                cycle_nodes=nodes,
            )
            self._verdicts[node] = _Verdict(False, [reason])
        return self._verdicts[node_id]

    def _check(self, node_id: str) -> _Check:
        node = self._prompt[node_id]
        spec, inputs = self._specs[node["class_type"]], node["inputs"]
        custom = CustomCheck(spec.cls)
        errors, valid, received = [], True, dict[str, Any]()
        for name in spec.declared():
            info = spec.input(name)
            assert info is not None  # it is declared
            value = inputs.get(name) if name in inputs else _ABSENT
            if value is _ABSENT:
                found = _missing_error(name) if info.category == "required" else None
            elif isinstance(value, list) and not isinstance(value, LiteralList):
                found, above = yield from self._check_link(name, value, info, custom, received)
                valid &= above
            else:
                found = _check_constant(inputs, name, info, custom)
            errors += [found] if found else []
        if custom.exists:
            errors += custom.errors(constants(inputs, spec, node_id), received, self._calls)
        before = self._verdicts.get(node_id, _Verdict(True, []))  # a cycle was found above
        errors = before.errors + [each for each in errors if each not in before.errors]
        verdict = _Verdict(valid and not errors, errors)
        self._verdicts[node_id] = verdict
        return verdict

    def _check_link(
        self,
        name: str,
        link: list[Any],
        info: InputInfo,
        custom: CustomCheck,
        received: dict[str, Any],
    ) -> Generator[str, _Verdict, tuple[Error | None, bool]]:
        """What is wrong with a link, and whether all above it is valid."""
        config = (info.type, info.options)
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            about = {"input_name": name, "input_config": config, "received_value": link}
            return error("bad_linked_input", message, name, **about), True
        source, slot = link
        given = self._specs[self._prompt[source]["class_type"]].cls.RETURN_TYPES[slot]
        received[name] = given
        if not custom.checks_types and not fits(given, info.type):
            mismatch = error(
                "return_type_mismatch",
                "Return type mismatch between linked nodes",
                f"{name}, received_type({given}) mismatch input_type({info.type})",
                input_name=name,
                input_config=config,
                received_type=given,
                linked_node=link,
            )
            return mismatch, True
        try:
            above = yield source
        except Exception as cause:  # noqa: BLE001  node classes may raise anything
            reason = error(
                "exception_during_inner_validation",
                "Exception when validating inner node",
                str(cause),
                input_name=name,
                input_config=config,
                exception_message=str(cause),
                exception_type=type_name(type(cause)),
                traceback=traceback.format_tb(cause.__traceback__),
                linked_node=link,
            )
            self._verdicts[source] = _Verdict(False, [reason])
            return None, False
        return None, above.valid


_ABSENT = object()


def _missing_error(name: str) -> Error:
    return error("required_input_missing", "Required input is missing", name, input_name=name)


def _check_constant(
    inputs: dict[str, Any], name: str, info: InputInfo, custom: CustomCheck
) -> Error | None:
    """Convert a value where it stands; what is wrong with it."""
    value = inputs[name] = unwrapped(inputs[name])
    try:
        value = inputs[name] = converted(value, info)
    except Exception as cause:  # noqa: BLE001  any object may be in a prompt
        return conversion_error(name, value, info, cause)
    return None if custom.names(name) else value_error(name, value, info)
