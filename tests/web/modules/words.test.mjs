// Words into prompts.
import assert from "node:assert/strict";
import test from "node:test";

import { withWord } from "../../../web/rows/words.js";

test("a word is set off by one comma, whatever the text ends with", () => {
  for (const text of ["a boat", "a boat,", " a boat, "])
    assert.equal(withWord(text, "ink"), "a boat, ink");
  assert.equal(withWord("", "ink"), "ink");
});
