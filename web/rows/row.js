// One row of the list, as elements. It knows its row and not its place: that is the list's.
import { say } from "../messages.js";
import { element, iconButton } from "./element.js";
import { baseName } from "./file_name.js";
import { reorderHandle } from "./handle.js";
import { RowWeighting } from "./row_weighting.js";
import { strengthField } from "./strength_field.js";

// Args:
//   list.change(view, fields, focused): new values of some fields, as one step of undo; the field
//     `focused` has the focus after it.
//   list.set(view, fields): new values within a gesture, which `list.finish()` ends.
//   list.move(view, step), list.showDrop(view, clientY), list.drop(view, clientY): see handle.js.
//   list.solo(view), list.duplicate(view), list.remove(view), list.details(view): of the buttons.
//   list.verdict(row): a promise of `{level, text, details}`.
//   list.blocks(row): a promise of what the route `blocks` answers.
//   list.onresize(): the row became higher or lower.
export class RowView {
  constructor(row, list) {
    this.list = list;
    this.row = row;
    this.element = element("li");
    this.verdict = element("p", { class: "lw-verdict" });
    this.weighting = new RowWeighting(this);
    this.show(row);
  }

  // Another row in its place, or the same with other values; an open weighting stays open.
  show(row) {
    const isSwitched = isSameButOn(this.row, row);
    this.row = row;
    this.element.className = row.on ? "lw-row" : "lw-row lw-off";
    if (!this.isBuilt) return;
    if (isSwitched) this.box.checked = row.on;
    else this.build();
  }

  // What stands in a row takes its time: the list says when.
  get isBuilt() {
    return this.element.hasChildNodes();
  }

  build() {
    const focused = this.element.contains(document.activeElement)
      ? document.activeElement.dataset.field
      : null;
    this.element.replaceChildren(this.line(), this.weighting.place, this.verdict);
    if (focused) this.focus(focused);
    this.weighting.show();
    this.showVerdict();
  }

  // What its weighting asks of the row, see row_weighting.js.

  set(fields) {
    this.list.set(this, fields);
  }

  finish() {
    this.list.finish();
  }

  blocks(row) {
    return this.list.blocks(row);
  }

  onresize() {
    this.list.onresize();
  }

  // Ask anew what the file and the weighting do: another model may be connected.
  refresh() {
    if (!this.isBuilt) return;
    this.showVerdict();
    this.weighting.refresh();
  }

  focus(field) {
    if (!this.isBuilt) this.build();
    const named = this.element.querySelector(`[data-field="${field}"]`);
    (named ?? this.element.querySelector('[data-field="model"]')).focus();
  }

  showVerdict() {
    const asked = (this.asked = this.list.verdict(this.row)); // an older answer may come later
    const show = (...told) => this.asked === asked && tell(this.verdict, ...told);
    asked.then(
      ({ level, text, details }) => show(level, text, details),
      ({ message }) => show("wrong", message),
    );
  }

  line() {
    const { list, row } = this;
    const { name, clip } = row;
    const handle = reorderHandle(name, {
      move: (step) => list.move(this, step),
      showDrop: (clientY) => list.showDrop(this, clientY),
      drop: (clientY) => list.drop(this, clientY),
    });
    return element(
      "div",
      { class: "lw-line" },
      handle,
      this.switch(),
      this.name(),
      this.weighting.strip,
      this.strength("model"),
      clip === undefined ? null : this.strength("clip"),
      this.clipButton(),
      this.weighting.button(),
      iconButton("S", say("rowSolo", { name }), () => list.solo(this), { "data-field": "solo" }),
      iconButton("pi-copy", say("rowDuplicate", { name }), () => list.duplicate(this), {
        "data-field": "duplicate",
      }),
      iconButton("pi-times", say("rowRemove", { name }), () => list.remove(this), { "data-field": "remove" }),
    );
  }

  switch() {
    this.box = element("input", {
      type: "checkbox",
      "data-field": "on",
      "aria-label": say("rowOn", { name: this.row.name }),
      onchange: () => this.list.change(this, { on: !this.row.on }, "on"),
    });
    this.box.checked = this.row.on;
    return this.box;
  }

  name() {
    const { name } = this.row;
    const attributes = { type: "button", class: "lw-name", title: say("rowWhatItIs", { name }) };
    const onclick = () => this.list.details(this);
    return element("button", { ...attributes, "data-field": "name", onclick }, baseName(name));
  }

  strength(field) {
    const { name } = this.row;
    const label = field === "model" ? say("rowStrength", { name }) : say("rowClipStrength", { name });
    const onchange = (value) => this.list.set(this, { [field]: value });
    const input = strengthField(label, this.row[field], onchange, () => this.list.finish());
    input.dataset.field = field;
    return input;
  }

  // Gives the row a CLIP strength of its own, or takes it off the row.
  clipButton() {
    const isShown = this.row.clip !== undefined;
    const toggle = () => {
      const clip = isShown ? undefined : this.row.model;
      this.list.change(this, { clip }, isShown ? "model" : "clip");
    };
    const label = say("rowOwnClip", { name: this.row.name });
    return iconButton("C", label, toggle, { "aria-pressed": String(isShown), "data-field": "clip button" });
  }
}

// Only what is new is written: every change of the graph asks for all verdicts.
function tell(line, level, text, details = []) {
  if (line.textContent !== text) line.textContent = text;
  line.title = details.join("\n");
  line.dataset.level = level;
}

function isSameButOn(row, other) {
  return JSON.stringify({ ...row, on: true }) === JSON.stringify({ ...other, on: true });
}
