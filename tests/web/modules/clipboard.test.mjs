// What Ctrl+C in the list takes.
import assert from "node:assert/strict";
import test from "node:test";

import { copyRows } from "../../../web/rows/clipboard.js";

const ROWS = [{ on: true, name: "a", model: 1 }];

function copied(target, selected = "") {
  globalThis.document = { getSelection: () => ({ isCollapsed: !selected }) };
  const data = {};
  const clipboardData = { setData: (type, text) => (data[type] = text) };
  const event = { target, clipboardData, prevented: false, preventDefault: () => (event.prevented = true) };
  copyRows(event, ROWS);
  return event.prevented ? data["text/plain"] : null;
}

test("rows are copied as tags", () => {
  assert.equal(copied({ tagName: "BUTTON" }), "<lora:a:1:1>");
});

test("text that is selected in the page or a field is copied as it is", () => {
  assert.equal(copied({ tagName: "BUTTON" }, "Made for SD 1.5"), null);
  assert.equal(copied({ tagName: "P" }, "Made for SD 1.5"), null);
  assert.equal(copied({ tagName: "INPUT", type: "text" }), null);
  assert.equal(copied({ tagName: "TEXTAREA" }), null);
});
