// Few questions at once.
import assert from "node:assert/strict";
import test from "node:test";

import { Turns } from "../../../web/turns.js";

test("few questions at once, each one answered", async () => {
  let [running, most] = [0, 0];
  const turns = new Turns();
  const question = async (name) => {
    most = Math.max(most, (running += 1));
    await new Promise((done) => setTimeout(done));
    running -= 1;
    if (name === "5") throw new Error("no");
    return name;
  };
  const asked = Array.from({ length: 50 }, (_, n) => turns.take(() => question(String(n))));
  const told = await Promise.allSettled(asked);
  assert.equal(most, 3);
  assert.deepEqual(told.filter(({ status }) => status === "rejected").length, 1);
  assert.equal(told.at(-1).value, "49");
});
