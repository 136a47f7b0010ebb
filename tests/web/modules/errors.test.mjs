// Errors of nodes, and whose they are.
import assert from "node:assert/strict";
import test from "node:test";

import { Errors, errorText } from "../../../web/report/errors.js";
import { workflowOfRun } from "../../../web/report/run.js";

test("an error stands until its node has another output", () => {
  const errors = new Errors();
  assert.equal(errors.of("w", "1", "good"), null);
  errors.add("w", "1", "bad", "good");
  assert.equal(errors.of("w", "1", "good"), "bad"); // undo brings the old output
  assert.equal(errors.of("w", "1", ""), "bad");
  assert.equal(errors.of("w", "1", "better"), null);
  assert.deepEqual([errors.of("w", "2", ""), errors.of("v", "1", "")], [null, null]);
  errors.forget("w", "1");
  assert.equal(errors.of("w", "1", "good"), null);
});

test("the oldest errors go", () => {
  const errors = new Errors();
  for (let node = 0; node < 100; node++) errors.add("w", node, "bad", "");
  assert.deepEqual([errors.of("w", 0, ""), errors.of("w", 99, "")], [null, "bad"]);
});

test("an exception without a message is told by its type", () => {
  assert.equal(errorText({ exception_message: " a\n", exception_type: "KeyError" }), " a\n");
  for (const message of ["", "\n", null, undefined])
    assert.equal(errorText({ exception_message: message, exception_type: "KeyError" }), "KeyError");
});

test("a run's workflow is asked for until the history has it", async () => {
  const run = { prompt: [0, "p", {}, { extra_pnginfo: { workflow: { id: "w" } } }] };
  const answers = [{}, { p: run }];
  assert.equal(await workflowOfRun("p", async () => answers.shift()), "w");
  assert.equal(await workflowOfRun("p", async () => ({ p: { prompt: [0, "p", {}, {}] } })), null);
  const refuse = async () => Promise.reject(new Error("offline"));
  assert.equal(await workflowOfRun("p", refuse), null);
});
