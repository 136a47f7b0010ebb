// The search of the picker.
import assert from "node:assert/strict";
import test from "node:test";

import { foldersOf, search } from "../../../web/rows/search.js";

const FILES = ["sub/inky/other.safetensors", "thinking.safetensors", "b_ink.pt", "sub\\ink.pt", "z.pt"];

test("a match at a word's start ranks before one inside, one in the folder last", () => {
  assert.deepEqual(search(FILES, "ink"), [FILES[2], FILES[3], FILES[1], FILES[0]]);
});

test("every word must stand in the name, in any order and case", () => {
  assert.deepEqual(search(FILES, "OTHER inky"), [FILES[0]]);
  assert.deepEqual(search(FILES, "ink nothing"), []);
});

test("an empty search is the list, cut to its limit", () => {
  assert.deepEqual(search(FILES, " ", 2), FILES.slice(0, 2));
});

test("folders of both slashes, each level once", () => {
  assert.deepEqual(foldersOf(FILES), ["sub", "sub/inky"]);
});
