// A dialog to choose LoRA files: type to search, arrows and Enter, several at once with Space.
import { openDialog } from "./dialog.js";
import { say } from "../messages.js";
import { element } from "./element.js";
import { foldersOf, search } from "./search.js";

const SHOWN = 200;

// Gives the chosen names, [] when the dialog is closed. `files` is a promise of `[{name}]`;
// `preview(name)` the address of its picture, or null for none; `query` what is searched for at first.
export function pickLoras(files, preview, query = "") {
  return new Promise((resolve) => new Picker(files, preview, resolve).open(query));
}

class Picker {
  constructor(files, preview, resolve) {
    this.files = files;
    this.preview = preview;
    this.resolve = resolve;
    this.byName = new Map();
    this.marked = new Set();
    this.taken = [];
    this.shown = [];
    this.at = 0;
  }

  open(query) {
    this.input = element("input", {
      type: "text", // Escape would only clear a search field
      class: "lw-search",
      value: query,
      placeholder: say("filesSearch"),
      "aria-label": say("filesSearch"),
      role: "combobox",
      "aria-expanded": "true",
      "aria-controls": "lw-found",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.render(0),
      onkeydown: (event) => this.onKey(event),
    });
    this.folder = element("select", {
      "aria-label": say("filesFolder"),
      class: "lw-folder",
      onchange: () => this.render(0),
    });
    this.list = element("ul", {
      id: "lw-found",
      class: "lw-found",
      role: "listbox",
      "aria-label": say("filesList"),
      "aria-multiselectable": "true",
    });
    this.told = element("p", { class: "lw-told", role: "status" }, say("filesLoading"));
    this.add = element(
      "button",
      { type: "button", class: "lw-add", onclick: () => this.finish(this.chosen()) },
      say("filesAdd"),
    );
    this.dialog = openDialog(
      say("filesTitle"),
      () => this.resolve([...this.taken]),
      element("div", { class: "lw-searchline" }, this.input, this.folder),
      this.list,
      element("div", { class: "lw-searchline" }, this.told, this.add),
    );
    this.dialog.classList.add("lw-picker");
    this.input.focus();
    this.input.select();
    this.files.then(
      (files) => this.fill(files),
      (error) => (this.told.textContent = error.message),
    );
  }

  fill(files) {
    this.byName = new Map(files.map((file) => [file.name, file]));
    this.names = files.map(({ name }) => name);
    this.folder.append(element("option", { value: "" }, say("filesAllFolders")));
    for (const folder of foldersOf(this.names))
      this.folder.append(element("option", { value: folder }, folder));
    this.render(0);
  }

  render(at) {
    if (!this.names) return;
    const folder = this.folder.value ? `${this.folder.value}/` : "";
    const names = this.names.filter((name) => name.replaceAll("\\", "/").startsWith(folder));
    this.shown = search(names, this.input.value, SHOWN);
    this.list.replaceChildren(...this.shown.map((name, index) => this.option(name, index)));
    const more = names.length > this.shown.length && this.shown.length === SHOWN;
    const found = { count: this.shown.length, all: names.length };
    if (!this.names.length) this.told.textContent = say("filesNone");
    else this.told.textContent = say(more ? "filesFoundOf" : "filesFound", found);
    this.moveTo(at);
  }

  option(name, index) {
    const parts = name.replaceAll("\\", "/").split("/");
    const picture = this.preview && this.byName.get(name).preview
      ? element("img", { class: "lw-thumb", loading: "lazy", alt: "", src: this.preview(name) })
      : element("span", { class: "lw-thumb" });
    return element(
      "li",
      {
        id: `lw-found-${index}`,
        role: "option",
        "aria-selected": String(this.marked.has(name)),
        onclick: (event) =>
          event.ctrlKey || event.metaKey ? this.mark(index) : this.finish([...this.marked, name]),
      },
      picture,
      element("span", { class: "lw-name" }, parts.at(-1)),
      element("span", { class: "lw-dim" }, parts.slice(0, -1).join("/")),
    );
  }

  moveTo(index) {
    this.list.children[this.at]?.classList.remove("lw-at");
    this.at = Math.min(Math.max(index, 0), this.shown.length - 1);
    const option = this.list.children[this.at];
    option?.classList.add("lw-at");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.input.setAttribute("aria-activedescendant", option.id);
    else this.input.removeAttribute("aria-activedescendant");
    this.add.disabled = !this.chosen().length;
    const count = this.marked.size;
    this.add.textContent = count > 1 ? say("filesAddSeveral", { count }) : say("filesAdd");
  }

  mark(index) {
    const name = this.shown[index];
    if (!this.marked.delete(name)) this.marked.add(name);
    this.list.children[index].setAttribute("aria-selected", String(this.marked.has(name)));
    this.moveTo(index);
  }

  chosen() {
    if (this.marked.size) return [...this.marked];
    return this.shown[this.at] === undefined ? [] : [this.shown[this.at]];
  }

  onKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    const marks = event.key === " " && (event.ctrlKey || this.marked.size || !this.input.value);
    if (steps) this.moveTo(this.at + steps);
    else if (event.key === "Enter") this.finish(this.chosen());
    else if (marks && this.shown.length) this.mark(this.at);
    else return;
    event.preventDefault();
  }

  finish(names) {
    this.taken = names;
    this.dialog.close();
  }
}
