"""What to do about refused inputs: ComfyUI's form of an error names what is wrong and no cure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .run_errors import NodeError

_FILE_NAME = re.compile(r"[^\n]+\.\w*[A-Za-z]\w*")
_FIXES = {
    "value_smaller_than_min": "give a value in the range: {setting}.",
    "value_bigger_than_max": "give a value in the range: {setting}.",
    "invalid_input_type": "give a value of this type: {setting}.",
    "value_not_in_list": "give a value of the list: {setting}.",
    "custom_validation_failed": "give another value: {setting}.",
    "required_input_missing": "connect or fill in this input, and export the graph again.",
    "bad_linked_input": "connect this input again, and export the graph again.",
    "return_type_mismatch": "connect an output of the type that the input takes.",
    "dependency_cycle": "take out one of the connections that lead back to this node.",
    "prompt_no_outputs": "add a node that saves or shows something, such as SaveImage.",
}
_MODEL, _FILE = "model that is not there", "other file that is not there"
_OTHER = "anything else"
_ON_THE_SERVER = "put the file on the server, or use one that is there: {setting}."
FIXES_IN_COMFYUI: Mapping[str, str] = _FIXES | {
    "missing_node_type": "install the node's pack in this ComfyUI, or take the node out.",
    _MODEL: _ON_THE_SERVER,
    _FILE: _ON_THE_SERVER,
    _OTHER: "look into ComfyUI's log for what happened.",
}
"""By ComfyUI's type of the refusal, for a graph that a ComfyUI refused."""
FIXES_HERE: Mapping[str, str] = _FIXES | {
    "missing_node_type": "run this graph in ComfyUI: add --comfyui URL or PATH.",
    _MODEL: "use a model that is in the folder of --models: {setting}.",
    _FILE: "give the path of a file: {setting}.",
    _OTHER: "run again with --verbose to see where it happened.",
}
"""The same for a graph that would have run in this process."""
_OF_FILES = ("value_not_in_list", "custom_validation_failed")


def counted(headline: str, errors: Sequence[NodeError]) -> str:
    """The headline and how many inputs are wrong, where inputs are."""
    count = sum(bool(error.input) for error in errors)
    if not count:
        return f"{headline}."
    return f"{headline}: " + ("1 input is wrong." if count == 1 else f"{count} inputs are wrong.")


def with_fixes(
    errors: Sequence[NodeError], prompt: Mapping[str, Any], fixes: Mapping[str, str]
) -> tuple[NodeError, ...]:
    """The errors with a line ``Fix: ...`` at the end of each message that has none.

    Args:
        errors: Refusals, in ComfyUI's types.
        prompt: The graph in API form, as it was validated.
        fixes: ``FIXES_IN_COMFYUI`` or ``FIXES_HERE``.
    """
    return tuple(_with_fix(error, prompt, fixes) for error in errors)


def _with_fix(error: NodeError, prompt: Mapping[str, Any], fixes: Mapping[str, str]) -> NodeError:
    if any(line.strip().startswith("Fix:") for line in error.message.splitlines()):
        return error
    node = prompt.get(error.node)
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    value = inputs.get(error.input) if isinstance(inputs, Mapping) else None
    is_file = error.kind in _OF_FILES and isinstance(value, str) and _FILE_NAME.fullmatch(value)
    file_kind = _MODEL if error.input.endswith("_name") else _FILE
    fix = fixes.get(file_kind if is_file else error.kind, fixes[_OTHER])
    what = "NAME" if is_file else "VALUE"
    setting = f"--set {error.node}.{error.input}={what}"
    return replace(error, message=f"{error.message}\nFix: {fix.format(setting=setting)}")
