"""What to do about inputs that ComfyUI refuses; it names what is wrong and no cure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .run_errors import NodeError

_FILE = re.compile(r"[^\n]+\.\w*[A-Za-z]\w*")
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
    "missing_node_type": "install the node's pack in this ComfyUI, or take the node out.",
    "prompt_no_outputs": "add a node that saves or shows something, such as SaveImage.",
}
_FILE_FIX = "put the file on the server, or use one that is there: {setting}."
_OF_FILES = ("value_not_in_list", "custom_validation_failed")
_OTHER_FIX = "look into ComfyUI's log for what happened."


def refused_by_comfyui(errors: Sequence[NodeError]) -> str:
    """A headline for a graph of which nothing runs."""
    return "ComfyUI refused the graph" + _counted(errors)


def left_out_by_comfyui(errors: Sequence[NodeError]) -> str:
    """A headline for a graph that runs without some of its outputs."""
    return "ComfyUI left a part of the graph out" + _counted(errors)


def _counted(errors: Sequence[NodeError]) -> str:
    count = sum(bool(error.input) for error in errors)
    if not count:
        return "."
    return ": 1 input is wrong." if count == 1 else f": {count} inputs are wrong."


def with_fixes(errors: Sequence[NodeError], prompt: Mapping[str, Any]) -> tuple[NodeError, ...]:
    """The errors with a line ``Fix: ...`` at the end of each message that has none.

    Args:
        errors: Refusals of a ComfyUI.
        prompt: The graph in API form, as it was sent.
    """
    return tuple(_with_fix(error, prompt) for error in errors)


def _with_fix(error: NodeError, prompt: Mapping[str, Any]) -> NodeError:
    if any(line.strip().startswith("Fix:") for line in error.message.splitlines()):
        return error
    node = prompt.get(error.node)
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    value = inputs.get(error.input) if isinstance(inputs, Mapping) else None
    is_file = error.kind in _OF_FILES and isinstance(value, str) and _FILE.fullmatch(value)
    fix = _FILE_FIX if is_file else _FIXES.get(error.kind, _OTHER_FIX)
    what = "NAME" if is_file else "VALUE"
    setting = f"--set {error.node}.{error.input}={what}"
    return replace(error, message=f"{error.message}\nFix: {fix.format(setting=setting)}")
