import assert from "node:assert/strict";
import { test } from "node:test";

import { viewsOf } from "../../../web/rows/keep.js";

function shown(rows, views = []) {
  const make = (row) => ({ row, shows: 0, show(other) { this.row = other; this.shows += 1; } });
  return viewsOf(rows, views, make);
}

const [a, b, c] = ["a", "b", "c"].map((name) => ({ name }));

test("rows that move, come and go keep their views", () => {
  const [first, second, third] = shown([a, b, c]);
  assert.deepEqual(shown([c, a], [first, second, third]), [third, first]);
  const [, added] = shown([a, { ...a }, b], [first, second]);
  assert.ok(![first, second].includes(added));
});

test("a changed row is shown by its view, without a change of the others", () => {
  const views = shown([a, b]);
  const after = shown([a, { ...b, model: 0.5 }], views);
  assert.deepEqual(after, views);
  assert.deepEqual(after.map(({ shows }) => shows), [0, 1]);
  assert.equal(after[1].row.model, 0.5);
});

test("another file in the same place has another view", () => {
  const views = shown([a]);
  assert.notEqual(shown([{ name: "x" }], views)[0], views[0]);
});
