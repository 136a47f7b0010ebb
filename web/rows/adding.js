// Files that are added to a list, and what became of their pins.
import { say } from "../messages.js";
import { withPin } from "./pins.js";
import * as rowsOf from "./rows.js";

// Args:
//   list: the editor.
//   host.pick(), host.newRow(name), host.pin(names), host.onchange(): see editor.js.
export class Adding {
  constructor(list, host) {
    this.list = list;
    this.host = host;
    this.unpinned = new Map(); // file name to the reason why its rows keep no hash
  }

  async add() {
    const names = await this.host.pick();
    if (!names.length) return this.list.addButton.focus();
    this.append(names.map((name) => this.host.newRow(name)));
    this.host.pin(names);
  }

  // At the end of the list, as one step of undo.
  append(rows) {
    const first = this.list.rows.length;
    this.list.update(rowsOf.added(this.list.rows, rows), [first, "model"]);
  }

  // No step of undo: the host puts it into the states of before, too.
  pinned(name, pin) {
    this.unpinned.delete(name);
    this.list.take(withPin(this.list.rows, name, pin));
    this.host.onchange();
  }

  // The row works without.
  notPinned(name, reason) {
    this.unpinned.set(name, reason);
    this.list.refreshVerdicts();
  }

  // The verdict of a row, with the reason why it is not pinned.
  told(verdict, row) {
    const reason = row.sha256 ? undefined : this.unpinned.get(row.name);
    if (reason === undefined) return verdict;
    const text = `${verdict.text} ${say("notPinned")}`;
    return { ...verdict, text, details: [...verdict.details, say("notPinnedWhy", { reason })] };
  }
}
