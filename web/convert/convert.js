// Another pack's LoRA nodes of a saved workflow as Apply LoRAs and LoRA Stack, links and order kept.
//
// Works on the workflow's JSON, so that nodes whose pack is missing are converted too.

import { writeRows } from "../rows/rows.js";
import { rowsOfNode } from "./foreign_rows.js";

const STACKS = ["CR LoRA Stack", "LoRA Stacker", "Lora Stacker (LoraManager)"];
const APPLIERS = ["CR Apply LoRA Stack"]; // a stack and no rows of its own
const [APPLY, STACK] = ["LoraWorkbenchApply", "LoraWorkbenchStack"];
const SOCKETS = {
  [APPLY]: { inputs: ["MODEL", "CLIP", "LORA_STACK"], outputs: ["MODEL", "CLIP"] },
  [STACK]: { inputs: ["LORA_STACK"], outputs: ["LORA_STACK"] },
};
const MORE_OUTPUTS = { [APPLY]: ["report", "trigger_words"], [STACK]: ["trigger_words", "text"] };
const WIDTH = 440;

// Gives `{workflow, converted}`: a new workflow, and how many nodes became ours. Nodes inside
// subgraphs stay as they are. Links of other kinds than models and stacks are taken off.
export function convertLoras(workflow) {
  const graph = new Graph(structuredClone(workflow));
  const ours = [];
  for (const node of [...graph.nodes.values()]) {
    const isApplier = APPLIERS.includes(node.type);
    const rows = isApplier ? [] : rowsOfNode(node);
    if (rows === null) continue;
    const type = STACKS.includes(node.type) ? STACK : APPLY;
    graph.replace(node, type, rows);
    ours.push(graph.nodes.get(node.id));
  }
  for (const node of ours) if (node.type === APPLY) fuseInto(graph, node);
  const converted = ours.length;
  for (const node of ours) seal(node);
  return { workflow: graph.toJson(), converted };
}

// A chain of loaders is one node: rows of the one before first, as they were applied.
function fuseInto(graph, node) {
  for (let before = chained(graph, node); before; before = chained(graph, node)) {
    node.rows = [...before.rows, ...node.rows];
    const sources = { model: "MODEL", clip: "CLIP", lora_stack: "LORA_STACK" };
    for (const [name, type] of Object.entries(sources)) {
      const link = graph.linkInto(before, type);
      if (name === "clip" && !graph.linkInto(node, "CLIP")) {
        if (link) graph.unlink(link);
        continue;
      }
      const own = graph.linkInto(node, type);
      if (own) graph.unlink(own);
      if (link) graph.retarget(link, node, type);
    }
    node.pos = before.pos;
    graph.nodes.delete(before.id);
  }
}

// The converted node right before this one whose outputs go nowhere else, or null.
function chained(graph, node) {
  const model = graph.linkInto(node, "MODEL");
  const before = model && graph.nodes.get(model[1]);
  if (!before?.rows || before.type !== APPLY || before.mode || node.mode) return null;
  if (graph.linkInto(node, "LORA_STACK")) return null; // it comes between the two nodes' rows
  const clip = graph.linkInto(node, "CLIP");
  if (clip && clip[1] !== before.id) return null;
  const isAlone = graph.linksOutOf(before).every(([, , , to]) => to === node.id);
  return isAlone ? before : null;
}

function seal(node) {
  const { rows } = node;
  delete node.rows;
  const value = rows.length ? writeRows(rows) : "[]";
  node.widgets_values = node.type === APPLY ? [value, "auto", "report"] : [value];
}

// A workflow's nodes by id, and its links `[id, from, slot, to, slot, type]`.
class Graph {
  constructor(workflow) {
    this.workflow = workflow;
    this.nodes = new Map(workflow.nodes.map((node) => [node.id, node]));
  }

  linkInto(node, type) {
    return this.workflow.links.find((link) => link[3] === node.id && link[5] === type) ?? null;
  }

  linksOutOf(node) {
    return this.workflow.links.filter((link) => link[1] === node.id);
  }

  unlink(gone) {
    this.workflow.links = this.workflow.links.filter((link) => link !== gone);
  }

  retarget(link, node, type) {
    link[3] = node.id;
    link[4] = SOCKETS[node.type].inputs.indexOf(type);
  }

  // Ours under the same id, so that links keep theirs; `rows` stand beside until they are written.
  replace({ id, pos, order, mode, flags, size }, type, rows) {
    const { inputs, outputs } = SOCKETS[type];
    for (const link of [...this.workflow.links]) {
      const [, from, , to, , kind] = link;
      if (to === id) link[4] = inputs.indexOf(kind);
      if (from === id) link[2] = outputs.indexOf(kind);
      if ((to === id && link[4] < 0) || (from === id && link[2] < 0)) this.unlink(link);
    }
    const made = { id, type, pos, order, mode, flags: flags ?? {}, rows };
    const width = Math.max(size?.[0] ?? size?.["0"] ?? 0, WIDTH);
    this.nodes.set(id, {
      ...made,
      size: [width, 240],
      properties: { "Node name for S&R": type, cnr_id: "comfyui-lora-workbench" },
    });
  }

  // Sockets are written from the links, the one place that tells what is connected.
  toJson() {
    const nodes = [...this.nodes.values()].map((node) =>
      SOCKETS[node.type] && !node.inputs ? this.withSockets(node) : this.relinked(node),
    );
    return { ...this.workflow, nodes };
  }

  withSockets(node) {
    const { inputs, outputs } = SOCKETS[node.type];
    const into = (type) => this.linkInto(node, type)?.[0] ?? null;
    const out = (slot) => this.linksOutOf(node).filter((link) => link[2] === slot);
    const names = outputs.map((type) => [type.toLowerCase(), type]);
    const more = MORE_OUTPUTS[node.type].map((name) => [name, "STRING"]);
    return {
      ...node,
      inputs: inputs.map((type) => ({ name: type.toLowerCase(), type, link: into(type) })),
      outputs: [...names, ...more].map(([name, type], slot) => ({
        name,
        type,
        links: out(slot).map(([id]) => id),
      })),
    };
  }

  // Another node forgets links that are gone.
  relinked(node) {
    const ids = new Set(this.workflow.links.map(([id]) => id));
    return {
      ...node,
      inputs: node.inputs?.map((input) =>
        input.link != null && !ids.has(input.link) ? { ...input, link: null } : input,
      ),
      outputs: node.outputs?.map((output) => ({
        ...output,
        links: output.links?.filter((id) => ids.has(id)) ?? null,
      })),
    };
  }
}
