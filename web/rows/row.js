// One row of the list, as elements. It knows its row and not its place: that is the list's.
import { element, iconButton } from "./element.js";
import { reorderHandle } from "./handle.js";
import { strengthField } from "./strength_field.js";

// Args:
//   list.change(view, fields, focused): new values of some fields, as one step of undo; the field
//     `focused` has the focus after it.
//   list.set(view, fields): new values within a gesture, which `list.finish()` ends.
//   list.move(view, step), list.showDrop(view, clientY), list.drop(view, clientY): see handle.js.
//   list.solo(view), list.duplicate(view), list.remove(view), list.details(view): of the buttons.
//   list.verdict(row): a promise of `{level, text, details}`.
export class RowView {
  constructor(row, list) {
    this.list = list;
    this.element = element("li");
    this.show(row);
  }

  show(row) {
    this.row = row;
    this.element.className = row.on ? "lw-row" : "lw-row lw-off";
    this.verdict = element("p", { class: "lw-verdict", role: "status" });
    const weighting = row.weighting === undefined ? [] : [this.weighting()];
    this.element.replaceChildren(this.line(), ...weighting, this.verdict);
    this.showVerdict();
  }

  focus(field) {
    this.element.querySelector(`[data-field="${field}"]`)?.focus();
  }

  showVerdict() {
    const line = this.verdict;
    this.list.verdict(this.row).then(
      ({ level, text, details }) => {
        line.textContent = text;
        line.title = (details ?? []).join("\n");
        line.dataset.level = level;
      },
      (error) => {
        line.textContent = error.message;
        line.dataset.level = "wrong";
      },
    );
  }

  line() {
    const { list, row } = this;
    const { name, clip, weighting } = row;
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
      this.strength("model"),
      clip === undefined ? null : this.strength("clip"),
      this.fieldButton("C", `CLIP strength of ${name} by itself`, "clip", () => this.row.model),
      this.fieldButton("W", `Weighting of ${name} by block`, "weighting", () => ""),
      iconButton("S", `Solo ${name}: only this one on`, () => list.solo(this)),
      iconButton("pi-copy", `Duplicate ${name}`, () => list.duplicate(this)),
      iconButton("pi-times", `Remove ${name}`, () => list.remove(this), { "data-field": "remove" }),
    );
  }

  switch() {
    const box = element("input", {
      type: "checkbox",
      "data-field": "on",
      "aria-label": `${this.row.name} on`,
      onchange: () => this.list.change(this, { on: !this.row.on }, "on"),
    });
    box.checked = this.row.on;
    return box;
  }

  name() {
    const { name } = this.row;
    const attributes = { type: "button", class: "lw-name", title: `${name}: what it is` };
    const onclick = () => this.list.details(this);
    return element("button", { ...attributes, "data-field": "name", onclick }, shortName(name));
  }

  strength(field) {
    const label = `${field === "model" ? "Strength" : "CLIP strength"} of ${this.row.name}`;
    const onchange = (value) => this.list.set(this, { [field]: value });
    const input = strengthField(label, this.row[field], onchange, () => this.list.finish());
    input.dataset.field = field;
    return input;
  }

  // Gives the row a field, with the value `first()`, or takes it off the row.
  fieldButton(letter, label, field, first) {
    const isShown = this.row[field] !== undefined;
    const toggle = () =>
      this.list.change(this, { [field]: isShown ? undefined : first() }, isShown ? "model" : field);
    return iconButton(letter, label, toggle, { "aria-pressed": String(isShown) });
  }

  // An object of a workflow written elsewhere is shown as JSON, which the same field takes.
  weighting() {
    const { name, weighting } = this.row;
    return element("input", {
      class: "lw-weighting",
      type: "text",
      value: typeof weighting === "string" ? weighting : JSON.stringify(weighting),
      placeholder: "by block, such as IN=0.5, OUT=1.2",
      "aria-label": `Weighting of ${name}`,
      "data-field": "weighting",
      spellcheck: "false",
      onchange: (event) => this.list.change(this, { weighting: event.target.value.trim() }),
    });
  }
}

function shortName(name) {
  return name.replaceAll("\\", "/").split("/").at(-1).replace(/\.(safetensors|pt|bin|ckpt)$/, "");
}
