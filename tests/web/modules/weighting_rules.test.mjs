// What sliders write into a weighting's text.
import assert from "node:assert/strict";
import test from "node:test";

import { presetsOf } from "../../../web/rows/weighting_presets.js";
import {
  blockFactor,
  inRanges,
  isRules,
  oneLine,
  partFactor,
  withBlock,
  withPart,
} from "../../../web/rows/weighting_rules.js";

function withBlocks(text, factors) {
  return Object.entries(factors).reduce((rest, [block, f]) => withBlock(rest, block, f), text);
}

test("neighbours of one factor are a range, in the model's order", () => {
  const down = { OUT01: 0.5, IN08: 0.5, IN07: 0.5, IN05: 0.5, BASE: 0, M00: 1.25, IN06: 0.5 };
  assert.equal(withBlocks("", down), "BASE=0, IN05-08=0.5, M00=1.25, OUT01=0.5");
  assert.equal(withBlocks("", { "blocks.09": 0, "blocks.10": 0 }), "blocks.09-10=0");
  assert.equal(withBlocks("", { S09: 0.1, S10: 0.1, D00: 0.1 }), "D00=0.1, S09-10=0.1");
});

test("one block is taken out of a range, and comes back into it", () => {
  const cut = withBlock("IN04-08=0.5", "IN06", 0.75);
  assert.equal(cut, "IN04-05=0.5, IN06=0.75, IN07-08=0.5");
  assert.equal(withBlock(cut, "IN06", 0.5), "IN04-08=0.5");
  assert.equal(withBlock("IN04-08=0.5", "IN08", 1), "IN04-07=0.5");
  assert.equal(withBlock("IN04=0.5", "IN04", 1), "");
});

test("the factor of all others is not written, whatever it is", () => {
  assert.equal(withBlock("default=0, IN04=1", "IN04", 0), "default=0");
  assert.equal(withBlock("default=0", "IN04", 1), "default=0, IN04=1");
});

test("other rules keep their words, their order and what they overrule", () => {
  const text = "in04 = .5, *.ff.*=0.2,OUT03-05 & v=0, attn2=0";
  assert.equal(withBlock(text, "IN05", 0.5), "IN04-05=0.5, *.ff.*=0.2, OUT03-05 & v=0, attn2=0");
  assert.equal(withBlock("attn2=0", "IN05", 0.5), "IN05=0.5, attn2=0");
  assert.equal(withBlock("*=0, IN05=0.5", "IN05", 1), "*=0, IN05=1"); // 1 is not what is left
  assert.equal(withBlock("no rule, IN05=x", "M00", 0), "M00=0, no rule, IN05=x");
});

test("of two runs the one that decides is written", () => {
  const text = "IN00-03=0.5, attn2=0, IN02=1";
  assert.equal(withBlock(text, "IN02", 0.25), "IN00-03=0.5, attn2=0, IN02=0.25");
  assert.equal(withBlock(text, "IN00", 0.25), "IN00=0.25, IN01-03=0.5, attn2=0, IN02=1");
  assert.equal(withBlock(text, "IN11", 0), "IN00-03=0.5, IN11=0, attn2=0, IN02=1");
});

test("blocks that this model lacks stay in the text", () => {
  assert.equal(withBlock("IN00-11=0.5", "IN00", 0), "IN00=0, IN01-11=0.5");
});

test("the last rule that names a block is its factor", () => {
  const text = "default=2, IN00-IN03=0.5\nin02=1, OUT00 & v=0";
  const factors = ["IN01", "IN02", "IN04", "OUT00"].map((block) => blockFactor(text, block));
  assert.deepEqual(factors, [0.5, 1, 2, 2]);
});

test("a part has a rule of its own or none", () => {
  assert.equal(partFactor("IN04=0.5, attn2=0.25", "attn2"), 0.25);
  assert.equal(partFactor("IN04 & attn2=0.25", "attn2"), null);
  assert.equal(withPart("attn2=0, ff=1", "attn2", 0.5), "attn2=0.5, ff=1");
  assert.equal(withPart("IN04=0.5", "te", 0), "IN04=0.5, te=0");
  assert.equal(withPart("te=1, IN04=0.5, te=0", "te", null), "IN04=0.5");
});

test("numbers and JSON are no rules", () => {
  assert.deepEqual(["", " IN04=1", "1,0,0", '[{"select": "IN04=", "factor": 1}]'].map(isRules), [true, true, false, false]);
});

test("equal neighbours are told as one", () => {
  const blocks = ["BASE", "IN00", "IN01", "M00"].map((name) => ({ name, factor: "1" }));
  assert.deepEqual(inRanges(blocks).map(({ select }) => select), ["BASE", "IN00-01", "M00"]);
});

test("presets are those of the model's family", () => {
  const labels = (family) => presetsOf(family).map(({ label }) => label);
  assert.equal(labels(null).length, 3);
  assert.ok(labels("sdxl").includes("Style block") && !labels("sdxl").includes("OUTALL: output blocks"));
  assert.ok(labels("sd15").includes("OUTALL: output blocks"));
});

test("text of several lines is shown in one, in every form", () => {
  assert.equal(oneLine(" IN04-08=0.5,\n\n attn2=0\nte=0\n"), "IN04-08=0.5, attn2=0, te=0");
  assert.equal(oneLine("1,0,0,0,\n1,1,1\n0 ,\r\n0\n, 1\n"), "1,0,0,0, 1,1,1, 0, 0, 1");
  const rules = [{ select: "IN04", factor: 0.5 }, { select: "te", factor: 0 }];
  assert.deepEqual(JSON.parse(oneLine(JSON.stringify(rules, null, 2))), rules);
  assert.equal(oneLine("IN04=0.5,attn2=0"), "IN04=0.5,attn2=0");
});

test("the numbers of what is not touched stay whole", () => {
  const text = "IN04-06=0.3333, M00=0.12345, OUT00=1e-7";
  assert.equal(withBlock(text, "IN05", 0.5), "IN04=0.3333, IN05=0.5, IN06=0.3333, M00=0.12345, OUT00=1e-7");
  assert.equal(withBlock("IN04=0.3333", "IN05", 0.333), "IN04=0.3333, IN05=0.333"); // no neighbours of one factor
  assert.equal(withPart("ff=0.12345", "attn2", 0.0625), "ff=0.12345, attn2=0.0625");
  assert.equal(withPart("", "attn2", 0.12345), "attn2=0.12345"); // as it was typed
  assert.equal(withBlock("", "IN05", 0.15000000000000002), "IN05=0.15"); // a slider's own dust
});
