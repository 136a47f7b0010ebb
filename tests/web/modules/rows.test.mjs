// Rows as text, and what a user does to them.
import assert from "node:assert/strict";
import test from "node:test";

import * as rows from "../../../web/rows/rows.js";

const three = () => ["a", "b", "c"].map((name) => rows.newRow(name));
const names = (list) => list.map(({ name }) => name).join("");
const on = (list) => list.map((row) => (row.on ? 1 : 0)).join("");

test("versioned JSON, a bare list and tags are read alike", () => {
  const wanted = [rows.newRow("a.safetensors", { model: 0.8, clip: 0.5 })];
  for (const text of [
    '{"version": 1, "rows": [{"name": "a.safetensors", "model": 0.8, "clip": 0.5}]}',
    '[{"name": "a.safetensors", "model": 0.8, "clip": 0.5}]',
    "<lora:a.safetensors:0.8:0.5>",
    "[]\n<lora:a.safetensors:0.8:0.5>,",
  ])
    assert.deepEqual(rows.parseRows(text), wanted, text);
});

test("an empty value, as a fresh node has it, is no rows", () => {
  for (const text of ["", " ", "[]", "[ ]"]) assert.deepEqual(rows.parseRows(text), []);
});

test("what is written is read back, unknown fields too", () => {
  const list = [rows.newRow("x", { sha256: "ab", size: 3, later: { deep: [1] } })];
  assert.deepEqual(rows.parseRows(rows.writeRows(list)), list);
});

test("strengths of a file stay as they are, and are shown whole", () => {
  assert.equal(rows.parseRows("<lora:a:0.125:-0.0625>")[0].model, 0.125);
  assert.equal(rows.parseRows("<lora:a:0.125:-0.0625>")[0].clip, -0.0625);
  assert.deepEqual([0.125, 0.5, 1].map(rows.showStrength), ["0.125", "0.50", "1.00"]);
});

test("null is the absence of a field, and a wrapped list is a list", () => {
  const [row] = rows.parseRows('{"__value__": [{"name": "a", "clip": null, "weighting": null}]}');
  assert.deepEqual(row, rows.newRow("a"));
});

test("text that is not rows is refused in words", () => {
  const bad = {
    "[{]": /not JSON/,
    '{"version": 2, "rows": []}': /version 2/,
    '{"rows": 3}': /not a list/,
    '[{"model": 1}]': /Row 1 has no name/,
    '[{"name": "a", "model": "1"}]': /not a number/,
    "hello": /Not understood: hello/,
    "<lora:a:x>": /strength is not a number/,
  };
  for (const [text, message] of Object.entries(bad))
    assert.throws(() => rows.parseRows(text), message);
});

test("tags leave out rows that are off, and repeat one strength for both", () => {
  const list = [rows.newRow("a"), rows.newRow("b", { on: false }), rows.newRow("c", { clip: 0 })];
  assert.equal(rows.writeTags(list), "<lora:a:1:1>\n<lora:c:1:0>");
});

test("moving keeps all rows and stays inside the list", () => {
  assert.equal(names(rows.moved(three(), 0, 2)), "bca");
  assert.equal(names(rows.moved(three(), 2, 0)), "cab");
  assert.equal(names(rows.moved(three(), 1, 99)), "acb");
  assert.equal(names(rows.moved(three(), 1, -1)), "bac");
});

test("a duplicate stands below its row, a removed one is gone", () => {
  assert.equal(names(rows.duplicated(three(), 1)), "abbc");
  assert.equal(names(rows.removed(three(), 1)), "ac");
});

test("all on unless all are on; solo leaves one, again brings back all", () => {
  const [a, b, c] = three();
  const mixed = [a, { ...b, on: false }, c];
  assert.equal(on(rows.toggledAll(mixed)), "111");
  assert.equal(on(rows.toggledAll(three())), "000");
  const solo = rows.soloed(mixed, 1);
  assert.equal(on(solo), "010");
  assert.equal(on(rows.soloed(solo, 1)), "111");
});

test("a field set to undefined is taken off; the list before is as it was", () => {
  const list = [rows.newRow("a", { clip: 0.5 })];
  assert.deepEqual(rows.changed(list, 0, { clip: undefined, model: 2 }), [
    rows.newRow("a", { model: 2 }),
  ]);
  assert.equal(list[0].clip, 0.5);
});

test("strengths are read with a point or a comma, rounded and bounded", () => {
  const cases = [["0,75", 0.75], ["1e3", 100], ["-101", -100], [0.1 + 0.2, 0.3], ["-0.001", 0]];
  for (const [text, value] of cases) assert.equal(rows.readStrength(text), value);
  for (const text of ["", "x", "NaN", "1 2"]) assert.equal(rows.readStrength(text), null);
});

test("fields beside the rows are kept, and written after them", () => {
  const text = '{"version":1,"rows":[{"name":"a"}],"made_by":"x"}';
  const { rows: list, others } = rows.readRows(text);
  assert.deepEqual(others, { made_by: "x" });
  assert.deepEqual(JSON.parse(rows.writeRows(list, others)), { version: 1, rows: list, made_by: "x" });
  assert.deepEqual(rows.readRows("<lora:a:1>").others, {});
});

test("a strength that is null is no strength", () => {
  assert.throws(() => rows.parseRows('[{"name": "a", "model": null}]'), /model/);
  assert.equal(rows.parseRows('[{"name": "a", "clip": null}]')[0].clip, undefined);
});
