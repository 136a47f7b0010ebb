// Errors in the form of reports.
import assert from "node:assert/strict";
import test from "node:test";

import { errorForm } from "../../../web/report/error_form.js";

test("headline, facts and fix of an error of ours", () => {
  const form = errorForm("It is: gone.\n  File: a: b.safetensors\n  Near: c\nFix: take c.\n");
  assert.equal(form.headline, "It is: gone.");
  assert.deepEqual(form.facts, [["File", "a: b.safetensors"], ["Near", "c"]]);
  assert.equal(form.fix, "take c.");
  assert.equal(form.level, "wrong");
});

test("any other error is its lines", () => {
  const form = errorForm("CUDA out of memory.\nTried to allocate 2 GiB");
  assert.deepEqual([form.headline, form.facts], ["CUDA out of memory.", [["", "Tried to allocate 2 GiB"]]]);
  assert.equal(errorForm("").headline, "");
});
