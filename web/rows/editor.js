// The rows of a stack as a list that people edit; the text value is the whole state.
import { idle } from "../idle.js";
import { say } from "../messages.js";
import { keepKeys } from "../panel.js";
import { Adding } from "./adding.js";
import { copyRows, pastedRows } from "./clipboard.js";
import { element } from "./element.js";
import { putInOrder, viewsOf } from "./keep.js";
import { rawText } from "./raw_text.js";
import { RowView } from "./row.js";
import * as rowsOf from "./rows.js";

const AT_ONCE = 15; // rows; as many as can be seen

// Args:
//   host.pick(): a promise of file names to add.
//   host.newRow(name): the row of an added file.
//   host.pin(names): bring size and hash of the files to `adding.pinned`, see adding.js.
//   host.verdict(row): a promise of `{level, text, details}`.
//   host.blocks(row): a promise of what the route `blocks` answers for its weighting.
//   host.details(view): show what the file of `view.row` is; a promise, kept once that is closed.
//   host.onchange(): called after each change of the value.
//   host.onfinish(): called once a change is complete, for undo.
//   host.onresize(): called when a row becomes higher or lower and no value changes.
export class RowEditor {
  constructor(host) {
    this.host = host;
    this.rows = [];
    this.views = []; // of the rows, in their order
    this.others = {}; // fields that stand beside the rows
    this.adding = new Adding(this, host);
    this.unreadable = null;
    this.root = element("div", { class: "lw-rows", role: "group", "aria-label": say("loras") });
    keepKeys(this.root);
    this.root.addEventListener("copy", (event) => copyRows(event, this.rows));
    this.root.addEventListener("paste", (event) => this.paste(pastedRows(event)));
    this.toolbar = this.makeToolbar();
    this.list = element("ol", { class: "lw-list" });
    this.list.addEventListener("focusin", ({ target }) => (this.lastItem = target.closest("li")));
    this.render();
  }

  // In pixels of the canvas, of all rows; 0 while it is not shown.
  get height() {
    return [...this.root.children].reduce((sum, { offsetHeight }) => sum + offsetHeight, 8);
  }

  get value() {
    if (this.unreadable) return this.unreadable.text;
    const isEmpty = !this.rows.length && !Object.keys(this.others).length;
    return isEmpty ? "[]" : rowsOf.writeRows(this.rows, this.others);
  }

  set value(text) {
    if (text === this.value) return;
    try {
      ({ rows: this.rows, others: this.others } = rowsOf.readRows(text));
      this.unreadable = null;
    } catch (error) {
      this.rows = [];
      this.others = {};
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

  // The same rows with other values, which their elements show already, or do not show.
  take(rows) {
    this.rows = rows;
    this.views.forEach((view, index) => (view.row = rows[index]));
  }

  add() {
    return this.adding.add();
  }

  paste(rows) {
    if (!rows.length || this.unreadable) return;
    this.adding.append(rows);
  }

  // Ask anew what each file would do: another model may be connected.
  refreshVerdicts() {
    for (const view of this.views) view.refresh();
  }

  // Where the focus is, for `focus(...)`; null when it is elsewhere.
  get focused() {
    const at = document.activeElement;
    if (!this.root.contains(at)) return null;
    return [this.views.findIndex((view) => view.element.contains(at)), at.dataset.field];
  }

  // The one that had the focus last, else the first.
  get currentView() {
    return this.views.find((view) => view.element === this.lastItem) ?? this.views[0];
  }

  // On a field of a row, or of the last one; above the rows when there are none.
  focus(index, field) {
    const view = index < 0 ? null : (this.views[index] ?? this.views.at(-1));
    if (view) view.focus(field);
    else this.addButton.focus();
  }

  render() {
    this.views = viewsOf(this.rows, this.views, (row) => new RowView(row, this));
    putInOrder(
      this.list,
      this.views.map((view) => view.element),
    );
    this.buildSome();
    this.showSwitch();
    putInOrder(this.root, this.unreadable ? [this.rawText()] : [this.toolbar, this.list]);
  }

  // Let the elements go, until `render()`: the frontend keeps nodes that have left the graph.
  release() {
    this.views = [];
    this.list.replaceChildren();
  }

  // The rows of a long list that are not seen at first are built while the page has nothing else to do.
  buildSome() {
    const rest = this.views.filter((view) => !view.isBuilt);
    rest.slice(0, AT_ONCE).forEach((view) => view.build());
    if (rest.length > AT_ONCE) idle().then(() => this.buildSome());
  }

  rawText() {
    const { text, message } = this.unreadable;
    return rawText(text, message, (mended) => {
      this.value = mended;
      this.host.onchange();
      this.host.onfinish();
    });
  }

  makeToolbar() {
    this.all = element("input", {
      type: "checkbox",
      "aria-label": say("allOn"),
      title: say("allOnHelp"),
      onchange: () => this.update(rowsOf.toggledAll(this.rows)),
    });
    this.addButton = element(
      "button",
      { type: "button", class: "lw-add", onclick: () => this.add() },
      `+ ${say("addLora")}`,
    );
    return element("div", { class: "lw-toolbar" }, this.all, this.addButton);
  }

  showSwitch() {
    const on = this.rows.filter((row) => row.on).length;
    this.all.checked = on > 0 && on === this.rows.length;
    this.all.indeterminate = on > 0 && on < this.rows.length;
    this.all.disabled = !this.rows.length;
  }

  // What a row asks of its list, see row.js.

  async verdict(row) {
    return this.adding.told(await this.host.verdict(row), row);
  }

  blocks(row) {
    return this.host.blocks(row);
  }

  onresize() {
    this.host.onresize();
  }

  details(view) {
    return this.host.details(view);
  }

  change(view, fields, focused) {
    const index = this.views.indexOf(view);
    this.update(rowsOf.changed(this.rows, index, fields), focused && [index, focused]);
  }

  set(view, fields) {
    this.take(rowsOf.changed(this.rows, this.views.indexOf(view), fields));
    this.host.onchange();
  }

  finish() {
    this.host.onfinish();
  }

  solo(view) {
    this.update(rowsOf.soloed(this.rows, this.views.indexOf(view)));
  }

  duplicate(view) {
    const index = this.views.indexOf(view);
    this.update(rowsOf.duplicated(this.rows, index), [index + 1, "model"]);
  }

  remove(view) {
    const index = this.views.indexOf(view);
    this.update(rowsOf.removed(this.rows, index));
    this.focus(index, "remove");
  }

  move(view, step) {
    this.moveTo(view, this.views.indexOf(view) + step);
  }

  drop(view, clientY) {
    this.moveTo(view, this.dropIndex(clientY));
  }

  moveTo(view, to) {
    const index = this.views.indexOf(view);
    const target = Math.min(Math.max(to, 0), this.rows.length - 1);
    if (target !== index) this.update(rowsOf.moved(this.rows, index, target), [target, "handle"]);
  }

  showDrop(view, clientY) {
    const target = clientY === null ? null : this.views[this.dropIndex(clientY)];
    for (const each of this.views)
      each.element.classList.toggle("lw-drop", each === target && each !== view);
  }

  dropIndex(clientY) {
    const middles = this.views.map(({ element: item }) => {
      const { top, height } = item.getBoundingClientRect();
      return top + height / 2;
    });
    const below = middles.findIndex((middle) => clientY < middle);
    return below < 0 ? middles.length - 1 : below;
  }
}
