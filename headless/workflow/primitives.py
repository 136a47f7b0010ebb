"""Primitive nodes: widgets that exist on the canvas only and write into the widgets they drive."""

import math
from collections.abc import Sequence
from datetime import datetime

from .graph import Graph, Json, Node, Widget
from .text import fill_patterns
from .widgets import set_value

_REPLACE = "Run widget replace on values"


def apply_primitives(graph: Graph, nodes: Sequence[Node], now: datetime) -> None:
    """Write the value of each primitive of a graph into its targets.

    ``nodes`` are those of the whole workflow, for file name patterns.
    """
    for node in graph.nodes.values():
        if node.type == "PrimitiveNode" and node.widgets:
            value = node.widgets[0].value
            if node.properties.get(_REPLACE) and isinstance(value, str):
                value = fill_patterns(value, nodes, now)
            for target, slot in graph.driven_by(node):
                widget = target.widget(slot.widget)
                if widget is not None:
                    set_value(target, widget, rounded(widget, value))


def rounded(widget: Widget, value: Json) -> Json:
    """A number as the widget would keep it: on its step (INT) or of its precision (FLOAT)."""
    if widget.kind not in ("INT", "FLOAT") or type(value) not in (int, float):
        return value
    if widget.kind == "INT":
        step = widget.options.get("step") or 1
        offset = 0 if step == 1 else (widget.options.get("min") or 0) % step
        return _round((value - offset) / step) * step + offset
    return _rounded_float(widget, value)


def _rounded_float(widget: Widget, value: float) -> float:
    step = widget.options.get("step") or 0.5
    precision = max(0, -math.floor(math.log10(step)))
    unit = widget.options.get("round") or (10.0**-precision if precision else 0)
    if not unit:
        return value
    low, high = widget.options.get("min", 0), widget.options.get("max", 2048)
    return min(max(round(_round(value / unit) * unit, precision), low), high)


def _round(value: float) -> int:
    """Round half up, as JavaScript does."""
    return math.floor(value + 0.5)
