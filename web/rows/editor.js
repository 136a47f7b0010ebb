// The rows of a stack as a list that people edit; the text value is the whole state.
import { element, iconButton } from "./element.js";
import * as rowsOf from "./rows.js";
import { strengthField } from "./strength_field.js";

const JSON_TYPE = "application/json";

// Args:
//   host.pick(): a promise of file names to add.
//   host.newRow(name): the row of an added file.
//   host.pin(name): a promise of `{size, sha256}` of a file.
//   host.verdict(row): a promise of `{level, text, details}`.
//   host.details(row): show what a row's file is; a promise, kept once that is closed.
//   host.onchange(): called after each change of the value.
//   host.onfinish(): called once a change is complete, for undo.
export class RowEditor {
  constructor(host) {
    this.host = host;
    this.rows = [];
    this.unreadable = null;
    this.root = element("div", { class: "lw-rows", role: "group", "aria-label": "LoRAs" });
    // Keys of the list are not commands of the canvas (Delete would take the node away).
    for (const type of ["keydown", "keyup", "copy", "paste", "cut"])
      this.root.addEventListener(type, (event) => event.stopPropagation());
    this.root.addEventListener("copy", (event) => this.onCopy(event));
    this.root.addEventListener("paste", (event) => this.onPaste(event));
    this.list = element("ol", { class: "lw-list" });
    this.list.addEventListener("focusin", ({ target }) => {
      this.focused = [...this.list.children].findIndex((item) => item.contains(target));
    });
    this.render();
  }

  // In pixels of the canvas, of all rows; 0 while it is not shown.
  get height() {
    return [...this.root.children].reduce((sum, { offsetHeight }) => sum + offsetHeight, 8);
  }

  get value() {
    if (this.unreadable) return this.unreadable.text;
    return this.rows.length ? rowsOf.writeRows(this.rows) : "[]";
  }

  set value(text) {
    if (text === this.value) return;
    try {
      this.rows = rowsOf.parseRows(text);
      this.unreadable = null;
    } catch (error) {
      this.rows = [];
      this.unreadable = { text, message: error.message };
    }
    this.render();
  }

  // Replace the rows as one step of undo; `focus` says which row and field has the focus after it.
  update(rows, focus) {
    this.rows = rows;
    this.render();
    if (focus) this.focus(...focus);
    this.host.onchange();
    this.host.onfinish();
  }

  async add() {
    const names = await this.host.pick();
    if (!names.length) return this.addButton?.focus();
    const first = this.rows.length;
    this.update(
      rowsOf.added(
        this.rows,
        names.map((name) => this.host.newRow(name)),
      ),
      [first, "model"],
    );
    await Promise.all(names.map((name) => this.pin(name)));
  }

  // Rows keep size and hash of their file, by which a moved or renamed one is found again.
  async pin(name) {
    const pin = await this.host.pin(name).catch(() => null); // the row works without
    if (!pin) return;
    const { size, sha256 } = pin;
    this.rows = this.rows.map((row) =>
      row.name === name && !row.sha256 ? { ...row, size, sha256 } : row,
    );
    this.host.onchange();
    this.host.onfinish();
  }

  // Tags for a prompt or a chat, and as JSON everything, for another of our nodes.
  onCopy(event) {
    if (isText(event.target) || !this.rows.length) return;
    event.preventDefault();
    event.clipboardData.setData("text/plain", rowsOf.writeTags(this.rows));
    event.clipboardData.setData(JSON_TYPE, rowsOf.writeRows(this.rows));
  }

  // Rows in either form are added at the end; other text is left alone.
  onPaste(event) {
    if (isText(event.target) || this.unreadable) return;
    const text = event.clipboardData.getData(JSON_TYPE) || event.clipboardData.getData("text/plain");
    const pasted = rowsIn(text);
    if (!pasted.length) return;
    event.preventDefault();
    this.update(rowsOf.added(this.rows, pasted), [this.rows.length, "model"]);
  }

  // Another file in the place of one, in every row that names it; the pin is the new file's.
  replace(name, other) {
    const swapped = ({ sha256, size, ...row }) => ({ ...row, name: other });
    if (!this.rows.some((row) => row.name === name)) return;
    this.update(this.rows.map((row) => (row.name === name ? swapped(row) : row)));
    this.pin(other);
  }

  // Ask anew what each file would do: another model may be connected.
  refreshVerdicts() {
    this.rows.forEach((row, index) => this.showVerdict(row, this.list.children[index]));
  }

  // The one that had the focus last, else the first.
  get currentRow() {
    return this.rows[this.focused] ?? this.rows[0];
  }

  focus(index, field) {
    this.list.children[index]?.querySelector(`[data-field="${field}"]`)?.focus();
  }

  render() {
    const content = this.unreadable ? [this.rawText()] : [this.toolbar(), this.list];
    this.list.replaceChildren(...this.rows.map((row, index) => this.rowElement(row, index)));
    this.root.replaceChildren(...content);
  }

  toolbar() {
    const all = element("input", {
      type: "checkbox",
      "aria-label": "All LoRAs on",
      title: "All on, or all off",
      onchange: () => this.update(rowsOf.toggledAll(this.rows)),
    });
    const on = this.rows.filter((row) => row.on).length;
    all.checked = on > 0 && on === this.rows.length;
    all.indeterminate = on > 0 && on < this.rows.length;
    all.disabled = !this.rows.length;
    this.addButton = element(
      "button",
      { type: "button", class: "lw-add", onclick: () => this.add() },
      "+ Add LoRA",
    );
    return element("div", { class: "lw-toolbar" }, all, this.addButton);
  }

  rowElement(row, index) {
    const { name } = row;
    const on = element("input", {
      type: "checkbox",
      "data-field": "on",
      "aria-label": `${name} on`,
      onchange: () =>
        this.update(rowsOf.changed(this.rows, index, { on: !row.on }), [index, "on"]),
    });
    on.checked = row.on;
    const item = element(
      "li",
      { class: row.on ? "lw-row" : "lw-row lw-off" },
      element(
        "div",
        { class: "lw-line" },
        this.handle(row, index),
        on,
        element(
          "button",
          {
            type: "button",
            class: "lw-name",
            title: `${name}: what it is`,
            "data-field": "name",
            onclick: () => this.host.details(this.rows[index]),
          },
          shortName(name),
        ),
        this.strength(row, index, "model"),
        row.clip === undefined ? null : this.strength(row, index, "clip"),
        this.fieldButton("C", `CLIP strength of ${name} by itself`, row.clip !== undefined, () =>
          this.update(
            rowsOf.changed(this.rows, index, {
              clip: row.clip === undefined ? this.rows[index].model : undefined,
            }),
            [index, row.clip === undefined ? "clip" : "model"],
          ),
        ),
        this.fieldButton("W", `Weighting of ${name} by block`, row.weighting !== undefined, () =>
          this.update(
            rowsOf.changed(this.rows, index, {
              weighting: row.weighting === undefined ? "" : undefined,
            }),
            [index, row.weighting === undefined ? "weighting" : "model"],
          ),
        ),
        iconButton("S", `Solo ${name}: only this one on`, () =>
          this.update(rowsOf.soloed(this.rows, index)),
        ),
        iconButton("pi-copy", `Duplicate ${name}`, () =>
          this.update(rowsOf.duplicated(this.rows, index), [index + 1, "model"]),
        ),
        iconButton("pi-times", `Remove ${name}`, () => this.remove(index), { "data-field": "remove" }),
      ),
      row.weighting === undefined ? null : this.weighting(row, index),
      element("p", { class: "lw-verdict", role: "status" }),
    );
    this.showVerdict(row, item);
    return item;
  }

  fieldButton(letter, label, isShown, onclick) {
    return iconButton(letter, label, onclick, { "aria-pressed": String(isShown) });
  }

  // An object of a workflow written elsewhere is shown as JSON, which the same field takes.
  weighting({ name, weighting }, index) {
    const shown = typeof weighting === "string" ? weighting : JSON.stringify(weighting);
    return element("input", {
      class: "lw-weighting",
      type: "text",
      value: shown,
      placeholder: "by block, such as IN04-08=0.5, attn2=0",
      "aria-label": `Weighting of ${name}`,
      "data-field": "weighting",
      spellcheck: "false",
      onchange: (event) =>
        this.update(rowsOf.changed(this.rows, index, { weighting: event.target.value.trim() })),
    });
  }

  remove(index) {
    this.update(rowsOf.removed(this.rows, index));
    if (this.rows.length) this.focus(Math.min(index, this.rows.length - 1), "remove");
    else this.addButton.focus();
  }

  strength(row, index, field) {
    const label = `${field === "model" ? "Strength" : "CLIP strength"} of ${row.name}`;
    const onchange = (value) => {
      this.rows = rowsOf.changed(this.rows, index, { [field]: value });
      this.host.onchange();
    };
    const input = strengthField(label, row[field], onchange, () => this.host.onfinish());
    input.dataset.field = field;
    return input;
  }

  // Drag by pointer; Alt with the arrows by keyboard.
  handle(row, index) {
    const button = iconButton("pi-bars", `Reorder ${row.name}: drag, or Alt with the arrows`, null, {
      class: "lw-icon lw-handle",
      "data-field": "handle",
    });
    const move = (to) => {
      const target = Math.min(Math.max(to, 0), this.rows.length - 1);
      if (target !== index) this.update(rowsOf.moved(this.rows, index, target), [target, "handle"]);
    };
    button.addEventListener("keydown", (event) => {
      const step = event.altKey ? { ArrowUp: -1, ArrowDown: 1 }[event.key] : 0;
      if (!step) return;
      event.preventDefault();
      move(index + step);
    });
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      button.onpointermove = ({ clientY }) => this.showDrop(this.dropIndex(clientY), index);
      button.onpointerup = ({ clientY }) => {
        button.onpointermove = button.onpointerup = null;
        this.showDrop(null);
        move(this.dropIndex(clientY));
      };
    });
    return button;
  }

  dropIndex(clientY) {
    const middles = [...this.list.children].map((item) => {
      const { top, height } = item.getBoundingClientRect();
      return top + height / 2;
    });
    const below = middles.findIndex((middle) => clientY < middle);
    return below < 0 ? middles.length - 1 : below;
  }

  showDrop(target, from) {
    [...this.list.children].forEach((item, index) =>
      item.classList.toggle("lw-drop", index === target && index !== from),
    );
  }

  showVerdict(row, item) {
    const line = item.querySelector(".lw-verdict");
    this.host.verdict(row).then(
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

  // Text that cannot be read as rows stays as it is, to be mended by hand.
  rawText() {
    const box = element("textarea", {
      class: "lw-raw",
      "aria-label": "Rows as text",
      onchange: () => {
        this.value = box.value;
        this.host.onchange();
        this.host.onfinish();
      },
    });
    box.value = this.unreadable.text;
    const told = element("p", { class: "lw-verdict", role: "alert" }, this.unreadable.message);
    told.dataset.level = "wrong";
    return element("div", {}, told, box);
  }
}

function isText({ tagName, type }) {
  return tagName === "TEXTAREA" || (tagName === "INPUT" && type === "text");
}

function rowsIn(text) {
  try {
    return rowsOf.parseRows(text);
  } catch {
    return []; // somebody's other text
  }
}

function shortName(name) {
  return name.replaceAll("\\", "/").split("/").at(-1).replace(/\.(safetensors|pt|bin|ckpt)$/, "");
}
