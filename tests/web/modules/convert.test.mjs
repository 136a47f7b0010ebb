// LoRA nodes of other packs become ours: the same rows, the same links.
import assert from "node:assert/strict";
import test from "node:test";

import { convertLoras } from "../../../web/convert/convert.js";
import { told } from "../../../web/convert/told.js";
import { rowsOfNode } from "../../../web/convert/foreign_rows.js";

const rowsOf = (type, values, properties) =>
  rowsOfNode({ type, widgets_values: values, properties });
const SEPARATE = { "Show Strengths": "Separate Model & Clip" };
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
      [["x/a.pt", 0.8, 1, true], ["b.pt", 0.25, 1, false]],
      SEPARATE,
    ],
    [
      "Power Lora Loader (rgthree)",
      [{ on: true, lora: "a.pt", strength: 0.8, strengthTwo: 0.1 }], // not shown, so not sent
      [["a.pt", 0.8, 0.8, true]],
    ],
    ["CR Load LoRA", ["Off", "a.pt", 1, 0.5], [["a.pt", 1, 0.5, false]]],
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
  for (const [type, values, wanted, properties] of cases)
    assert.deepEqual(briefly(rowsOf(type, values, properties)), wanted, type);
});

test("a node that is no LoRA node has no rows", () => {
  assert.equal(rowsOf("KSampler", [1]), null);
  assert.equal(rowsOf("constructor", []), null);
  assert.equal(rowsOfNode({ type: "LoraLoader" }), null);
  assert.equal(rowsOf("LoRA Stacker", ["a.pt", 0.5, "b.pt", 0.5, "None", 1]), null); // of 2023
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

test("title and colours that a user gave stay; of a chain the last node's go first", () => {
  const chain = workflowOf(
    [[2, "LoraLoaderModelOnly", ["a", 1]], [3, "LoraLoaderModelOnly", ["b", 1]], END],
    [[2, 0, 3, 0, "MODEL"], [3, 0, 9, 0, "MODEL"]],
  );
  const colours = { color: "#232", bgcolor: "#353" };
  Object.assign(chain.nodes[0], { title: "Inks", ...colours });
  const made = () => convertLoras(chain).workflow.nodes.find(({ id }) => id === 3);
  const lookOf = ({ title, color, bgcolor }) => ({ title, color, bgcolor });
  assert.deepEqual(lookOf(made()), { title: "Inks", ...colours });
  chain.nodes[1].title = "Papers";
  assert.deepEqual(lookOf(made()), { title: "Papers", ...colours });
  chain.nodes[0] = { ...chain.nodes[0], title: undefined, color: undefined, bgcolor: undefined };
  delete chain.nodes[1].title;
  assert.ok(!["title", "color", "bgcolor"].some((key) => key in made()));
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
  const { workflow, converted, lost } = convertLoras(
    workflowOf(
      [[1, "CR LoRA Stack", ["On", "a", 1, 1]], [2, "CR Apply LoRA Stack", []], [3, "ShowText", []], END],
      [[1, 0, 2, 2, "LORA_STACK"], [1, 1, 3, 0, "STRING"], [2, 0, 9, 0, "MODEL"], [2, 1, 9, 1, "CLIP"]],
    ),
  );
  assert.equal(converted, 2);
  assert.equal(lost, 1);
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

// --- subgraphs -------------------------------------------------------------------------------

const loader = (id, links, more = {}) => ({
  ...{ id, type: "LoraLoaderModelOnly", mode: 0, pos: [0, 0], order: id, properties: {} },
  inputs: [
    { name: "model", type: "MODEL", link: links[0] },
    { name: "strength_model", type: "FLOAT", widget: { name: "strength_model" }, link: null },
  ],
  outputs: [{ name: "MODEL", type: "MODEL", links: [links[1]] }],
  widgets_values: [`${id}.pt`, 0.5],
  ...more,
});
const link = (id, from, to, type = "MODEL", slot = 0, origin = 0) => ({
  ...{ id, type, origin_id: from, origin_slot: origin, target_id: to, target_slot: slot },
});

// Two loaders in a row, from the subgraph's input to its output.
function definition(nodes = [loader(1, [1, 2]), loader(2, [2, 3])], more = []) {
  return {
    id: "u-u-i-d",
    inputs: [
      { id: "a", name: "model", type: "MODEL", linkIds: [1] },
      { id: "c", name: "strength", type: "FLOAT", linkIds: more.map(({ id }) => id) },
    ],
    outputs: [{ id: "b", name: "MODEL", type: "MODEL", linkIds: [3] }],
    nodes,
    links: [link(1, -10, 1), link(2, 1, 2), link(3, 2, -20), ...more],
  };
}

function around(subgraph, properties = {}) {
  const host = { id: 5, type: subgraph.id, inputs: [], outputs: [], properties };
  return { nodes: [host], links: [], definitions: { subgraphs: [subgraph] } };
}

test("a chain inside a subgraph is one node, still between its input and its output", () => {
  const { workflow, converted } = convertLoras(around(definition()));
  const [inside] = workflow.definitions.subgraphs;
  assert.equal(converted, 2);
  assert.deepEqual(inside.nodes.map(briefNode).map(([id, type]) => [id, type]), [
    [2, "LoraWorkbenchApply"],
  ]);
  assert.deepEqual(namesIn(inside.nodes[0].widgets_values[0]), ["1.pt", "2.pt"]);
  assert.deepEqual(inside.links, [link(1, -10, 2), link(3, 2, -20)]);
  assert.deepEqual(inside.inputs[0].linkIds, [1]);
  assert.deepEqual(inside.outputs[0].linkIds, [3]);
  assert.equal(inside.nodes[0].inputs[0].link, 1);
  assert.deepEqual(inside.nodes[0].outputs[0].links, [3]);
  assert.equal(workflow.nodes[0].type, "u-u-i-d");
});

test("a loader whose strength the subgraph's input sets stays", () => {
  const subgraph = definition(undefined, [link(4, -10, 2, "FLOAT", 1, 1)]);
  const { workflow, converted, driven } = convertLoras(around(subgraph));
  assert.deepEqual([converted, driven], [1, 1]);
  const [first, second] = workflow.definitions.subgraphs[0].nodes;
  assert.deepEqual([first.type, second.type], ["LoraWorkbenchApply", "LoraLoaderModelOnly"]);
  assert.equal(second.inputs[1].link, 4);
});

test("a loader whose strength stands on the subgraph's node stays, and so does that widget", () => {
  const proxyWidgets = [["2", "strength_model"]];
  const { workflow, driven } = convertLoras(around(definition(), { proxyWidgets }));
  assert.equal(driven, 1);
  assert.deepEqual(workflow.nodes[0].properties.proxyWidgets, proxyWidgets);
  assert.equal(workflow.definitions.subgraphs[0].nodes[1].type, "LoraLoaderModelOnly");
});

test("a subgraph used twice is converted once", () => {
  const twice = around(definition());
  twice.nodes.push({ ...twice.nodes[0], id: 6 });
  assert.equal(convertLoras(twice).converted, 2);
});

test("links saved as arrays or as objects stay what they were", () => {
  const root = { nodes: [loader(1, [1, 2])], links: [link(1, 9, 1), link(2, 1, 8)] };
  assert.deepEqual(convertLoras(root).workflow.links, root.links);
});

test("group nodes stay and are counted", () => {
  const nodes = [{ id: 1, type: "workflow>mine", inputs: [], outputs: [], widgets_values: ["a"] }];
  const inside = [{ type: "LoraLoader", widgets_values: ["a", 1, 1] }];
  const before = { nodes, links: [], extra: { groupNodes: { mine: { nodes: inside } } } };
  const { workflow, converted, grouped } = convertLoras(before);
  assert.deepEqual([converted, grouped], [0, 1]);
  assert.deepEqual(workflow, before);
});

test("a notice tells what stays", () => {
  assert.equal(told({ converted: 3, driven: 0, grouped: 0, lost: 0 }).summary, "LoRA nodes converted: 3");
  const notice = told({ converted: 1, driven: 2, grouped: 0, lost: 1 });
  assert.equal(notice.severity, "warn");
  assert.match(notice.detail, /^Nodes that stay: 2\..* gone: 1\.$/);
});
