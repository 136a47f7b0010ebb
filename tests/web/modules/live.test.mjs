// Series, states, words and geometry of a live panel.
import assert from "node:assert/strict";
import test from "node:test";

import { layOut, ticks } from "../../../web/live/geometry.js";
import { MOST_POINTS, appended, thinned } from "../../../web/live/series.js";
import { States, applied } from "../../../web/live/state.js";
import { curveText, duration, progressText, stateText, timeLeft } from "../../../web/live/words.js";

const event = (number, more = {}) => ({ workflow: "w", prompt: "p", node: "1", number, ...more });

test("thinning halves a curve and keeps its order, its lowest and its highest point", () => {
  const points = Array.from({ length: 4000 }, (_, x) => [x, Math.sin(x / 50)]);
  points[1777] = [1777, 9];
  points[2222] = [2222, -9];
  const kept = thinned(points);
  assert.equal(kept.length, 2000);
  assert.deepEqual(
    kept.map(([x]) => x),
    kept.map(([x]) => x).toSorted((a, b) => a - b),
  );
  assert(kept.some(([, y]) => y === 9) && kept.some(([, y]) => y === -9));
});

test("a curve never grows beyond its bound", () => {
  let points = [];
  for (let x = 0; x < 3 * MOST_POINTS; x++) points = appended(points, [[x, 1]]);
  assert(points.length <= MOST_POINTS);
  assert.deepEqual(points.at(-1), [3 * MOST_POINTS - 1, 1]);
});

test("events add up to the state that the server gives whole", () => {
  const first = applied(undefined, event(1, { state: "running", points: { loss: [[1, 2]] } }));
  const second = applied(first, event(2, { progress: { step: 2 }, points: { loss: [[2, 1]] } }));
  assert.deepEqual(second.points, { loss: [[1, 2], [2, 1]] });
  assert.deepEqual(second.progress, { step: 2 });
  assert.equal(second.state, "running");
});

test("an event that was seen changes nothing, and a gap is noticed", () => {
  const first = applied(undefined, event(1, { points: { loss: [[1, 2]] } }));
  assert.equal(applied(first, event(1, { points: { loss: [[1, 2]] } })), first);
  assert.equal(applied(first, event(3)), null);
  assert.equal(applied(undefined, event(5)), null);
});

test("another run begins anew", () => {
  const first = applied(undefined, event(1, { points: { loss: [[1, 2]] } }));
  const next = applied(first, event(1, { prompt: "q", state: "running" }));
  assert.deepEqual([next.prompt, next.points], ["q", {}]);
});

test("a whole state from the server goes before older events, and not before newer ones", () => {
  const states = new States();
  states.take(event(1, { state: "running" }));
  states.load([event(4, { state: "running", points: {} })], "w");
  assert.equal(states.get("w", "1").number, 4);
  states.load([event(2, { state: "running" })], "w");
  assert.equal(states.get("w", "1").number, 4);
  assert(states.take(event(5)));
  assert(!states.take(event(7)));
});

test("a run that the server does not know any more is lost", () => {
  const states = new States();
  states.take(event(1, { state: "running" }));
  states.load([], "w");
  assert.match(stateText(states.get("w", "1")), /does not know/);
});

test("workflows do not see each other's panels", () => {
  const states = new States();
  states.take(event(1));
  states.take(event(1, { workflow: "other", node: "2" }));
  assert.equal(states.get("other", "1"), undefined);
  assert.deepEqual(states.of("other").map(({ node }) => node), ["2"]);
});

test("the states are as many as may be", () => {
  const states = new States();
  for (let node = 0; node < 50; node++) states.take(event(1, { node: String(node) }));
  assert.equal(states.of("w").length, 16);
  assert.equal(states.get("w", "49").node, "49");
});

test("the time left goes by the steps that were seen, of a resumed run too", () => {
  assert.equal(timeLeft({ step: 10, total: 100, first: 0, seconds: 10 }), "2 min left");
  assert.equal(timeLeft({ step: 510, total: 520, first: 500, seconds: 20 }), "20 s left");
  assert.equal(timeLeft({ step: 1, total: 100, first: 1, seconds: 0 }), "");
  assert.equal(timeLeft({ step: 100, total: 100, first: 0, seconds: 9 }), "");
});

test("durations, progress and curves in words", () => {
  const told = [0.2, 59.4, 60, 3599, 5400].map(duration);
  assert.deepEqual(told, ["1 s", "59 s", "1 min", "1 h 0 min", "1 h 30 min"]);
  const progress = { step: 5, total: 10, text: "loss 0.1", first: 0, seconds: 5 };
  assert.equal(progressText(progress, true), "step 5 of 10 · 5 s left · loss 0.1");
  assert.equal(progressText(progress, false), "step 5 of 10 · loss 0.1");
  assert.equal(progressText({}, true), "");
  const curve = [[1, 0.9], [2, 0.05], [3, 0.123456]];
  const words = "loss: from 0.9 at 1 to 0.1235 at 3, lowest 0.05, highest 0.9";
  assert.equal(curveText("loss", curve), words);
});

test("ticks are round numbers within the range", () => {
  assert.deepEqual(ticks(0, 1, 4), [0, 0.5, 1]);
  assert.deepEqual(ticks(0, 1000, 5), [0, 200, 400, 600, 800, 1000]);
  assert.deepEqual(ticks(0.0001, 0.0004, 3), [0.0001, 0.0002, 0.0003, 0.0004]);
});

test("a chart lays its curves into its area; one point and a flat curve too", () => {
  const { lines, area } = layOut({ a: [[0, 1], [10, 3]], b: [[5, 2]] });
  assert.equal(lines[0].path, `M${area.left} ${area.bottom}L${area.right} ${area.top}`);
  assert.equal(lines[1].path, `M${(area.left + area.right) / 2} ${(area.top + area.bottom) / 2}h0`);
  for (const { path } of layOut({ flat: [[1, 0], [2, 0]] }).lines) assert(!path.includes("NaN"));
  for (const { path } of layOut({ one: [[1, 5]] }).lines) assert(!path.includes("NaN"));
});
