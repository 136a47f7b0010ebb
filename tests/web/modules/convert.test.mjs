// LoRA nodes of other packs become ours: the same rows, the same links.
import assert from "node:assert/strict";
import test from "node:test";

import { convertLoras } from "../../../web/convert/convert.js";
import { rowsOfNode } from "../../../web/convert/foreign_rows.js";

const rowsOf = (type, values) => rowsOfNode({ type, widgets_values: values });
const briefly = (rows) => rows.map(({ name, model, clip, on }) => [name, model, clip ?? model, on]);

test("rows of each pack's saved values", () => {
  const cases = [
    ["LoraLoader", ["a.pt", 0.8, 0.5], [["a.pt", 0.8, 0.5, true]]],
    ["LoraLoader", ["a.pt", 0.125, 0.375], [["a.pt", 0.125, 0.375, true]]],
    ["LoraLoaderModelOnly", ["a.pt", 0.8], [["a.pt", 0.8, 0, true]]],
    [
      "Power Lora Loader (rgthree)",
      [
        {},
        { type: "PowerLoraLoaderHeaderWidget" },
        { on: true, lora: "x/a.pt", strength: 0.8, strengthTwo: 1 },
        { on: false, lora: "b.pt", strength: 0.25, strengthTwo: null },
        { on: true, lora: "None", strength: 1, strengthTwo: null },
        {},
        "",
      ],
      [["x/a.pt", 0.8, 1, true], ["b.pt", 0.25, 0.25, false]],
    ],
    [
      "CR LoRA Stack",
      ["On", "a.pt", 1, 0.5, "Off", "b.pt", 2, 2, "On", "None", 1, 1],
      [["a.pt", 1, 0.5, true], ["b.pt", 2, 2, false]],
    ],
    ["LoRA Stacker", ["simple", 1, "a.pt", 0.7, 9, 9, "b.pt", 1, 1, 1], [["a.pt", 0.7, 0.7, true]]],
    [
      "LoRA Stacker",
      ["advanced", 2, "a.pt", 9, 0.7, 0.2, "None", 1, 1, 1],
      [["a.pt", 0.7, 0.2, true]],
    ],
    [
      "Lora Loader (LoraManager)",
      ["<lora:a:1>", [{ name: "a", strength: "0.5", clipStrength: 1, active: false }]],
      [["a", 0.5, 1, false]],
    ],
  ];
  for (const [type, values, wanted] of cases)
    assert.deepEqual(briefly(rowsOf(type, values)), wanted, type);
});

test("a node that is no LoRA node has no rows", () => {
  assert.equal(rowsOf("KSampler", [1]), null);
  assert.equal(rowsOf("constructor", []), null);
  assert.equal(rowsOfNode({ type: "LoraLoader" }), null);
});

// Nodes as `[id, type, values]`, links as `[from, slot, to, slot, type]`.
function workflowOf(nodes, links) {
  const numbered = links.map((link, at) => [at + 1, ...link]);
  return {
    nodes: nodes.map(([id, type, values, mode = 0]) => ({
      ...{ id, type, mode, pos: [10 * id, 0], order: id, widgets_values: values },
      inputs: numbered.filter((l) => l[3] === id).map(([link, , , , , kind]) => ({ type: kind, link })),
      outputs: [{ links: numbered.filter((l) => l[1] === id).map(([link]) => link) }],
    })),
    links: numbered,
    extra: { kept: true },
  };
}

const END = [9, "KSampler", [], 0];
const briefNode = ({ id, type, widgets_values: values }) => [id, type, values?.[0]];
const linksOf = ({ links }) => links.map(([, ...link]) => link.slice(0, 5).join(" "));
const namesIn = (value) => JSON.parse(value).rows.map(({ name }) => name);

test("a chain of loaders is one node with the rows in order", () => {
  const before = workflowOf(
    [[1, "CheckpointLoaderSimple", ["c"]], [2, "LoraLoader", ["a", 1, 1]], [3, "LoraLoader", ["b", 1, 0]], END],
    [[1, 0, 2, 0, "MODEL"], [1, 1, 2, 1, "CLIP"], [2, 0, 3, 0, "MODEL"], [2, 1, 3, 1, "CLIP"], [3, 0, 9, 0, "MODEL"], [3, 1, 9, 1, "CLIP"]],
  );
  const text = JSON.stringify(before);
  const { workflow, converted } = convertLoras(before);
  assert.equal(JSON.stringify(before), text); // as it was
  assert.equal(converted, 2);
  const [, apply] = workflow.nodes.map(briefNode);
  assert.equal(workflow.nodes.length, 3);
  assert.deepEqual(apply.slice(0, 2), [3, "LoraWorkbenchApply"]);
  assert.deepEqual(namesIn(apply[2]), ["a", "b"]);
  assert.deepEqual(linksOf(workflow).sort(), [
    "1 0 3 0 MODEL", "1 1 3 1 CLIP", "3 0 9 0 MODEL", "3 1 9 1 CLIP",
  ]);
  const made = workflow.nodes.find(({ id }) => id === 3);
  assert.deepEqual(made.inputs.map(({ name, link }) => [name, link]), [
    ["model", 1], ["clip", 2], ["lora_stack", null],
  ]);
  assert.deepEqual(made.outputs.map(({ links }) => links), [[5], [6], [], []]);
  assert.deepEqual(workflow.extra, { kept: true });
});

test("a chain that branches off in its middle stays two nodes", () => {
  const { workflow } = convertLoras(
    workflowOf(
      [[2, "LoraLoaderModelOnly", ["a", 1]], [3, "LoraLoaderModelOnly", ["b", 1]], END],
      [[2, 0, 3, 0, "MODEL"], [2, 0, 9, 1, "MODEL"], [3, 0, 9, 0, "MODEL"]],
    ),
  );
  assert.equal(workflow.nodes.length, 3);
});

test("a muted loader in a chain keeps its mode and a node of its own", () => {
  const { workflow } = convertLoras(
    workflowOf(
      [[2, "LoraLoaderModelOnly", ["a", 1], 4], [3, "LoraLoaderModelOnly", ["b", 1]], END],
      [[2, 0, 3, 0, "MODEL"], [3, 0, 9, 0, "MODEL"]],
    ),
  );
  assert.deepEqual(workflow.nodes.map(({ mode }) => mode), [4, 0, 0]);
});

test("a stack and the node that applies it become ours; the help text's link is gone", () => {
  const { workflow, converted } = convertLoras(
    workflowOf(
      [[1, "CR LoRA Stack", ["On", "a", 1, 1]], [2, "CR Apply LoRA Stack", []], [3, "ShowText", []], END],
      [[1, 0, 2, 2, "LORA_STACK"], [1, 1, 3, 0, "STRING"], [2, 0, 9, 0, "MODEL"], [2, 1, 9, 1, "CLIP"]],
    ),
  );
  assert.equal(converted, 2);
  assert.deepEqual(workflow.nodes.map(({ type }) => type), [
    "LoraWorkbenchStack", "LoraWorkbenchApply", "ShowText", "KSampler",
  ]);
  assert.deepEqual(linksOf(workflow), ["1 0 2 2 LORA_STACK", "2 0 9 0 MODEL", "2 1 9 1 CLIP"]);
  assert.equal(workflow.nodes[2].inputs[0].link, null);
  assert.equal(workflow.nodes[1].widgets_values[0], "[]");
});

test("nodes of ours and of nobody's are left alone", () => {
  const { workflow, converted } = convertLoras(
    workflowOf([[1, "LoraWorkbenchApply", ["[]", "auto", "report"]], END], [[1, 0, 9, 0, "MODEL"]]),
  );
  assert.equal(converted, 0);
  assert.deepEqual(workflow.nodes[0].widgets_values, ["[]", "auto", "report"]);
});
