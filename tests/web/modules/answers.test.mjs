// Answers are asked for once.
import assert from "node:assert/strict";
import test from "node:test";

import { Answers } from "../../../web/rows/answers.js";

test("each file and model is asked once, until files may have changed", async () => {
  const asked = [];
  const answers = new Answers(async (query) => asked.push(JSON.stringify(query)));
  const sd15 = { checkpoint: "sd15", folder: "checkpoints" };
  for (const model of [null, sd15, null, sd15]) await answers.of({ name: "a" }, model);
  assert.equal(asked.length, 2);
  answers.forget();
  await answers.of({ name: "a" }, sd15);
  await answers.of({ name: "a", sha256: "ab", size: 1 }, sd15);
  assert.deepEqual(JSON.parse(asked[3]), { name: "a", sha256: "ab", size: 1, ...sd15 });
  assert.equal(asked.length, 4);
});

test("a failed question is asked again", async () => {
  let count = 0;
  const answers = new Answers(async () => {
    if (++count === 1) throw new Error("offline");
    return "ok";
  });
  await assert.rejects(answers.of({ name: "a" }, null));
  assert.equal(await answers.of({ name: "a" }, null), "ok");
});

test("the answers that were needed last are kept", async () => {
  const asked = [];
  const answers = new Answers(async ({ name }) => asked.push(name), 3);
  for (const name of ["a", "b", "c", "a", "d", "a", "b"]) await answers.of({ name });
  assert.deepEqual(asked, ["a", "b", "c", "d", "b"]);
  assert.equal(answers.known.size, 3);
});

test("a question of before does not take the answer away that came after it", async () => {
  const held = [];
  const answers = new Answers(() => new Promise((done, fail) => held.push({ done, fail })));
  const before = answers.of({ name: "a" });
  answers.forget();
  const after = answers.of({ name: "a" });
  held[0].fail(new Error("offline"));
  await assert.rejects(before);
  assert.equal(answers.of({ name: "a" }), after);
});
