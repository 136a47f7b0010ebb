// Pins in rows and in the workflows that undo goes to.
import assert from "node:assert/strict";
import test from "node:test";

import { pinnedNode, withPin } from "../../../web/rows/pins.js";
import { newRow, parseRows, writeRows } from "../../../web/rows/rows.js";
import { withNode } from "../../../web/saved_node.js";

const pinnedIn = (saved, place, ...pin) => withNode(saved, place, (each) => pinnedNode(each, ...pin));
const PIN = { size: 3, sha256: "ab" };

test("a pin goes into every row of the file that has none", () => {
  const rows = [newRow("a"), newRow("a", { sha256: "cd", size: 1 }), newRow("b")];
  assert.deepEqual(withPin(rows, "a", PIN), [newRow("a", PIN), rows[1], rows[2]]);
  assert.equal(withPin(rows, "c", PIN), rows);
});

const node = (id, text, more = {}) => ({ id, widgets_values: [text, "auto"], ...more });
const text = (...names) => writeRows(names.map((name) => newRow(name)), { made_by: "x" });
const pins = ({ widgets_values: [value] }) => parseRows(value).map(({ sha256 }) => sha256);

test("in a saved workflow the rows of one node alone are pinned", () => {
  const inside = { id: "sub", nodes: [node(1, text("a"))] };
  const saved = { nodes: [node(1, text("a")), node(2, text("a", "b"))], definitions: { subgraphs: [inside] } };
  const before = JSON.stringify(saved);
  const root = pinnedIn(saved, { graph: null, node: 2 }, "a", PIN);
  assert.deepEqual(root.nodes.map(pins), [[undefined], ["ab", undefined]]);
  assert.equal(root.nodes[1].widgets_values[1], "auto");
  assert.equal(JSON.parse(root.nodes[1].widgets_values[0]).made_by, "x");
  assert.equal(root.definitions, saved.definitions);
  const sub = pinnedIn(saved, { graph: "sub", node: 1 }, "a", PIN);
  assert.deepEqual([sub.nodes, sub.definitions.subgraphs[0].nodes.map(pins)], [saved.nodes, [["ab"]]]);
  assert.equal(JSON.stringify(saved), before);
});

test("values that a frontend saves by name are the same", () => {
  const named = { widgets_values_named: { rows: text("a"), mode: "auto" } };
  const saved = { nodes: [node(1, text("a"), named)] };
  const [pinned] = pinnedIn(saved, { graph: null, node: 1 }, "a", PIN).nodes;
  assert.deepEqual(pinned.widgets_values_named, { rows: pinned.widgets_values[0], mode: "auto" });
});

test("a workflow without such a row stays the same object", () => {
  const saved = { nodes: [node(1, "not rows"), node(2, "[]"), { id: 3 }] };
  for (const place of [1, 2, 3, 4].map((id) => ({ graph: null, node: id })))
    assert.equal(pinnedIn(saved, place, "a", PIN), saved);
  assert.equal(pinnedIn(saved, { graph: "sub", node: 1 }, "a", PIN), saved);
});
