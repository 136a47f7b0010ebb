"""Widgets of a node as the canvas makes them from its definition, and the values saved for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from ...lora_core.errors import LoraError
from .definitions import InputSpec, NodeDefinition, read_input
from .graph import ABSENT, Json, Node, Slot, Widget


def add_inputs(node: Node, specs: Sequence[InputSpec]) -> None:
    """Give a node its sockets, then its widgets with theirs, in the order of the canvas."""
    for spec in specs:
        _add_socket(node, spec)
    for spec in specs:
        _add_widget(node, spec)


def _is_widget(spec: InputSpec) -> bool:
    # A widgetType that is not core's comes with a pack's JavaScript, which makes one widget of it.
    known = spec.widget_type in _BUILDERS or spec.type in _BUILDERS
    return known and not spec.options.get("forceInput")


def _add_socket(node: Node, spec: InputSpec) -> None:
    if _is_widget(spec):
        return
    if spec.type == "COMFY_AUTOGROW_V3":
        _add_autogrow(node, spec)
    elif spec.type == "COMFY_MATCHTYPE_V3":
        node.inputs.append(Slot(spec.name, spec.options["template"]["allowed_types"]))
    else:
        node.inputs.append(Slot(spec.name, spec.type))


def _add_widget(node: Node, spec: InputSpec) -> None:
    if not _is_widget(spec):
        return
    build = _BUILDERS.get(spec.widget_type) or _BUILDERS[spec.type]
    made = build(spec)
    node.widgets += made
    node.inputs.append(Slot(spec.name, spec.type, widget=spec.name))
    if made[0].kind == "branches":
        _grow_branch(node, made[0])


# --- inputs that grow -----------------------------------------------------------------------


def _add_autogrow(node: Node, spec: InputSpec) -> None:
    """Add the sockets that an empty growing input shows; a workflow brings the further ones."""
    template = spec.options["template"]
    names, least = template.get("names"), template.get("min", 1)
    most = len(names) if names else template.get("max", 100)
    inputs = [*_declared(template["input"])]
    for position in range(min(max(least + 1, 1), most)):
        for name, raw in inputs:
            if names:
                last = names[position]
            else:
                prefix = template.get("prefix", "") if len(inputs) == 1 else name
                last = f"{prefix}{position}"
            add_inputs(node, [read_input(f"{spec.name}.{last}", raw)])


def _declared(inputs: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    for kind in ("required", "optional"):
        yield from (inputs.get(kind) or {}).items()


def _grow_branch(node: Node, combo: Widget) -> None:
    """Show the inputs of the chosen branch only; links stay by name."""
    prefix = f"{combo.name}."
    links = {slot.name: slot.link for slot in node.inputs if slot.name.startswith(prefix)}
    node.inputs[:] = [slot for slot in node.inputs if slot.name not in links]
    node.widgets[:] = [w for w in node.widgets if not w.name.startswith(prefix)]
    branch = Node(node.id, node.type, node.title)
    chosen = combo.options["branches"].get(str(combo.value)) or {}
    for name, raw in _declared(chosen):
        add_inputs(branch, [read_input(prefix + name, raw)])
    for slot in branch.inputs:
        slot.link = links.get(slot.name)
    _insert_after(node.widgets, node.widgets.index(combo), branch.widgets)
    names = [slot.name for slot in node.inputs]
    _insert_after(node.inputs, names.index(combo.name), branch.inputs)


def _insert_after(items: list[Json], position: int, added: list[Json]) -> None:
    items[position + 1 : position + 1] = added


# --- one builder per widget type ------------------------------------------------------------


def _default(spec: InputSpec, otherwise: Json) -> Json:
    value = spec.options.get("default")
    return otherwise if value is None else value


def _plain(kind: str, otherwise: Json) -> Callable[[InputSpec], list[Widget]]:
    def build(spec: InputSpec) -> list[Widget]:
        return [Widget(spec.name, _default(spec, otherwise), kind, spec.options)]

    return build


def _int(spec: InputSpec) -> list[Widget]:
    control = spec.options.get("control_after_generate")
    if control is None:
        control = spec.name in ("seed", "noise_seed")
    return _plain("INT", 0)(spec) + _control(spec, control, "randomize")


def _float(spec: InputSpec) -> list[Widget]:
    control = spec.options.get("control_after_generate")
    return _plain("FLOAT", 0)(spec) + _control(spec, control, "fixed")


def _string(spec: InputSpec) -> list[Widget]:
    return _plain("customtext" if spec.options.get("multiline") else "text", "")(spec)


def _combo(spec: InputSpec) -> list[Widget]:
    control = spec.options.get("control_after_generate")
    if spec.options.get("multi_select"):
        return [Widget(spec.name, [], "multiselect"), *_control(spec, control, "fixed", True)]
    choices = spec.options.get("options") or ()
    value = spec.options.get("default") or (choices[0] if choices else ABSENT)
    remote = spec.options.get("remote") or {}
    if value is ABSENT and remote:
        value = "Loading..."
    made = [Widget(spec.name, value, "combo", spec.options)]
    if remote:
        made.append(Widget("Auto-refresh after generation", False, "toggle", sent=False))
    if remote.get("refresh_button"):
        made.append(Widget("refresh", "refresh", "button"))
    return made + _control(spec, control, "randomize", True)


def _control(
    spec: InputSpec, control: Json, otherwise: str, filtered: bool = False
) -> list[Widget]:
    """The extra widgets that change a value after each run."""
    if not control:
        return []
    name = control if isinstance(control, str) else "control_after_generate"
    value = control if isinstance(control, str) else otherwise
    made = [Widget(name, value, "combo", sent=False)]
    if filtered:
        made.append(Widget("control_filter_list", "", "text", sent=False))
    return made


def _branches(spec: InputSpec) -> list[Widget]:
    branches = {choice["key"]: choice.get("inputs") or {} for choice in spec.options["options"]}
    value = next(iter(branches), ABSENT)
    return [Widget(spec.name, value, "branches", {"branches": branches})]


def _color(spec: InputSpec) -> list[Widget]:
    nested = (spec.options.get("options") or {}).get("default")
    return [Widget(spec.name, _default(spec, nested or "#000000"), "color")]


def _image_compare(spec: InputSpec) -> list[Widget]:
    return [Widget(spec.name, ["", ""], "imagecompare", saved=False)]


def _bounding_box(spec: InputSpec) -> list[Widget]:
    box = _default(spec, {"x": 0, "y": 0, "width": 512, "height": 512})
    sides = [
        Widget(side, box[side], "number", sent=False) for side in ("x", "y", "width", "height")
    ]
    return [Widget(spec.name, dict(box), "boundingbox"), *sides]


def _button(label: str, saved: bool = True) -> Callable[[InputSpec], list[Widget]]:
    def build(spec: InputSpec) -> list[Widget]:
        return [Widget(spec.name, label, "button", sent=False, saved=saved)]

    return build


def _textarea(spec: InputSpec) -> list[Widget]:
    return [Widget(spec.name, (spec.options.get("options") or {}).get("default") or "", "textarea")]


_CURVE = {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"}

# ComfyUI frontend: the widget types of scripts/widgets.ts and extensions/core (1.47).
_BUILDERS: Mapping[str, Callable[[InputSpec], list[Widget]]] = {
    "INT": _int,
    "FLOAT": _float,
    "BOOLEAN": _plain("toggle", False),
    "STRING": _string,
    "MARKDOWN": _plain("markdown", ""),
    "TEXTAREA": _textarea,
    "COMBO": _combo,
    "COMFY_DYNAMICCOMBO_V3": _branches,
    "COLOR": _color,
    "COLORS": _plain("colors", []),
    "CURVE": _plain("curve", _CURVE),
    "RANGE": _plain("range", {"min": 0.0, "max": 1.0}),
    "PAINTER": _plain("painter", ""),
    "BOUNDING_BOX": _bounding_box,
    "BOUNDING_BOXES": _plain("boundingboxes", []),
    "IMAGECOMPARE": _image_compare,
    "IMAGEUPLOAD": _button("image"),
    "AUDIOUPLOAD": _button(""),
    "PREVIEW_3D": _plain("preview", ""),
    "AUDIO_UI": _button("", saved=False),
}


# --- saved values ---------------------------------------------------------------------------


def restore_values(node: Node, definition: NodeDefinition, saved: Json) -> None:
    """Give widgets the values of ``widgets_values``: by position, or by name from an object.

    Raises:
        LoraError: a pack's node has more values than widgets, so its JavaScript makes some.
    """
    if isinstance(saved, Mapping):
        for widget in list(node.widgets):
            if widget.name in saved:
                set_value(node, widget, saved[widget.name])
        return
    values = _without_forced(node, definition, list(saved or ()))
    rest = _assign(node, values)
    if not definition.core and any(value not in (None, "") for value in rest):
        raise LoraError(
            f"Node {node.id} ({node.type}) has widgets that only its pack's JavaScript makes.",
            {"Widgets that the server describes": len(node.widgets), "Saved values": len(values)},
            "export the graph with Workflow > Export (API) in ComfyUI and give that file.",
        )


def _assign(node: Node, values: list[Json]) -> list[Json]:
    """Assign in order and return what is left over; a branch may add widgets on the way."""
    place = 0
    for widget in node.widgets:
        if not widget.saved:
            continue
        if place >= len(values):
            break
        set_value(node, widget, values[place])
        place += 1
    return values[place:]


def _without_forced(node: Node, definition: NodeDefinition, values: list[Json]) -> list[Json]:
    # ComfyUI frontend: before 1.16 a forceInput socket had a widget with a saved value.
    names = {widget.name for widget in node.widgets}
    forced: list[bool] = []
    for spec in definition.inputs:
        is_forced = bool(spec.options.get("forceInput"))
        if spec.name in names or is_forced:
            forced.append(is_forced)
            forced += [False] if spec.options.get("control_after_generate") else []
    if len(forced) != len(values):
        return values
    return [value for value, drop in zip(values, forced, strict=True) if not drop]


def set_value(node: Node, widget: Widget, value: Json) -> None:
    """Give a widget a value as the canvas does when it loads one."""
    widget.value = "" if value is None and widget.kind == "customtext" else value
    if widget.kind == "branches":
        _grow_branch(node, widget)
