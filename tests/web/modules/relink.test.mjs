// Which files a workflow's rows mean, and other files in their place.
import assert from "node:assert/strict";
import test from "node:test";

import { keyOf, relinked, wantedFiles } from "../../../web/rows/relink.js";

const text = (...rows) => JSON.stringify(rows);

test("each file is wanted once, with the nodes that have it", () => {
  const lists = [
    { label: "one", text: text({ name: "a" }, { name: "a", model: 0.5 }, { name: "a", sha256: "1" }) },
    { label: "two", text: text({ name: "a" }) },
    { label: "three", text: "not rows" },
    { label: "four", text: "<lora:b:1>" },
  ];
  assert.deepEqual(
    wantedFiles(lists).map(({ name, sha256, labels }) => [name, sha256, labels]),
    [["a", undefined, ["one", "two"]], ["a", "1", ["one"]], ["b", undefined, ["four"]]],
  );
});

test("a row gets the file and keeps all else", () => {
  const row = { name: "old", sha256: "1", size: 2, model: 0.5, on: false, weighting: "IN=0", note: "x" };
  const files = new Map([[keyOf(row), { name: "new", sha256: "3", size: 4 }]]);
  const other = { name: "old", model: 1, on: true }; // no hash: not known to be the same file
  const { rows } = JSON.parse(relinked(text(row, other), files));
  assert.deepEqual(rows, [{ ...row, name: "new", sha256: "3", size: 4 }, other]);
});

test("a file without a pin takes the old one's away", () => {
  const row = { name: "old", sha256: "1", size: 2, model: 1, on: true };
  const { rows } = JSON.parse(relinked(text(row), new Map([[keyOf(row), { name: "new" }]])));
  assert.deepEqual(rows, [{ name: "new", model: 1, on: true }]);
});

test("rows that mean none of the files stay the text they are", () => {
  assert.equal(relinked("<lora:a:1>", new Map([[keyOf({ name: "b" }), { name: "c" }]])), null);
  assert.equal(relinked("not rows", new Map([[keyOf({ name: "b" }), { name: "c" }]])), null);
});
