// Verdicts are asked once.
import assert from "node:assert/strict";
import test from "node:test";

import { Verdicts } from "../../../web/rows/verdicts.js";

test("each file and model is asked once, until files may have changed", async () => {
  const asked = [];
  const verdicts = new Verdicts(async (query) => asked.push(JSON.stringify(query)));
  const sd15 = { checkpoint: "sd15", folder: "checkpoints" };
  for (const model of [null, sd15, null, sd15]) await verdicts.of({ name: "a" }, model);
  assert.equal(asked.length, 2);
  verdicts.forget();
  await verdicts.of({ name: "a" }, sd15);
  await verdicts.of({ name: "a", sha256: "ab", size: 1 }, sd15);
  assert.deepEqual(JSON.parse(asked[3]), { name: "a", sha256: "ab", size: 1, ...sd15 });
  assert.equal(asked.length, 4);
});

test("a failed question is asked again", async () => {
  let count = 0;
  const verdicts = new Verdicts(async () => {
    if (++count === 1) throw new Error("offline");
    return "ok";
  });
  await assert.rejects(verdicts.of({ name: "a" }, null));
  assert.equal(await verdicts.of({ name: "a" }, null), "ok");
});

test("few questions at once, each one answered", async () => {
  let [running, most] = [0, 0];
  const verdicts = new Verdicts(async ({ name }) => {
    most = Math.max(most, (running += 1));
    await new Promise((done) => setTimeout(done));
    running -= 1;
    if (name === "5") throw new Error("no");
    return name;
  });
  const asked = Array.from({ length: 50 }, (_, n) => verdicts.of({ name: String(n) }, null));
  const told = await Promise.allSettled(asked);
  assert.equal(most, 3);
  assert.deepEqual(told.filter(({ status }) => status === "rejected").length, 1);
  assert.equal(told.at(-1).value, "49");
});
