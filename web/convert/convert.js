// Another pack's LoRA nodes of a saved workflow as Apply LoRAs and LoRA Stack, links and order kept.
//
// Works on the workflow's JSON, so that nodes whose pack is missing are converted too.

import { APPLY, STACK } from "../row_lists.js";
import { writeRows } from "../rows/rows.js";
import { rowsOfNode } from "./foreign_rows.js";
import { Graph } from "./graph.js";

const STACKS = ["CR LoRA Stack", "LoRA Stacker", "Lora Stacker (LoraManager)"];
const APPLIERS = ["CR Apply LoRA Stack"]; // a stack and no rows of its own
const CARRIED = ["MODEL", "CLIP", "LORA_STACK"];
const SOCKETS = {
  [APPLY]: { inputs: CARRIED, outputs: ["MODEL", "CLIP"], texts: ["report", "trigger_words"] },
  [STACK]: { inputs: ["LORA_STACK"], outputs: ["LORA_STACK"], texts: ["trigger_words", "text"] },
};
const UNUSED = ["text"]; // inputs that other packs' nodes have for their own page alone
const GROUP = /^workflow[>/]/;
const WIDTH = 440;

// Gives `{workflow, converted, driven, grouped, lost}`: a new workflow, how many nodes became ours,
// how many stay because a link or a subgraph's widget sets their values, how many group nodes
// with LoRA loaders stay, and how many links to texts of other packs are gone. Each subgraph
// is converted once, where it is defined.
export function convertLoras(workflow) {
  const copy = structuredClone(workflow);
  const subgraphs = copy.definitions?.subgraphs ?? [];
  const counts = { converted: 0, driven: 0, grouped: groupsWithLoras(copy), lost: 0 };
  const shown = widgetsShownOutside([copy, ...subgraphs]);
  const convert = (saved, kind) => convertGraph(new Graph(saved), shown.get(kind), counts);
  const result = convert(copy, null);
  if (subgraphs.length)
    result.definitions = {
      ...copy.definitions,
      subgraphs: subgraphs.map((each) => convert(each, each.id)),
    };
  return { workflow: result, ...counts };
}

function convertGraph(graph, shownOutside = new Set(), counts) {
  const ours = [];
  for (const node of [...graph.nodes.values()]) {
    const rows = APPLIERS.includes(node.type) ? [] : rowsOfNode(node);
    if (rows === null) continue;
    if (shownOutside.has(String(node.id)) || isDriven(graph, node)) {
      counts.driven += 1;
      continue;
    }
    const made = { ...nodeOfOurs(node, STACKS.includes(node.type) ? STACK : APPLY), rows };
    counts.lost += graph.replace(node, made);
    ours.push(made);
  }
  counts.converted += ours.length;
  for (const node of ours) if (node.type === APPLY) fuseInto(graph, node);
  for (const node of ours) seal(node);
  return graph.toJson();
}

// Whether a link sets a value, so that the saved one does not count.
function isDriven(graph, node) {
  return graph.linksInto(node).some((link) => {
    const { name, type } = node.inputs?.[link.target_slot] ?? link;
    return !CARRIED.includes(type) && !UNUSED.includes(name);
  });
}

// Nodes whose widgets stand on the node of their subgraph too, by the subgraph's id. (Frontends up
// to 1.46; later ones link the widget to an input of the subgraph.)
function widgetsShownOutside(graphs) {
  const shown = new Map();
  for (const { type, properties } of graphs.flatMap(({ nodes }) => nodes)) {
    const entries = properties?.proxyWidgets;
    if (!Array.isArray(entries)) continue;
    const ids = shown.get(type) ?? new Set();
    for (const [id] of entries) ids.add(String(id));
    shown.set(type, ids);
  }
  return shown;
}

function groupsWithLoras({ nodes, extra }) {
  return nodes.filter(({ type }) => {
    const inside = GROUP.test(type) ? extra?.groupNodes?.[type.replace(GROUP, "")]?.nodes : null;
    return inside?.some((node) => APPLIERS.includes(node.type) || rowsOfNode(node));
  }).length;
}

function nodeOfOurs({ id, pos, order, mode, flags, size, ...look }, type) {
  const { inputs, outputs, texts } = SOCKETS[type];
  const socket = (kind) => ({ name: kind.toLowerCase(), type: kind });
  const width = Math.max(size?.[0] ?? size?.["0"] ?? 0, WIDTH);
  return {
    ...{ id, type, pos, order, mode, flags: flags ?? {}, size: [width, 240] },
    ...lookOf(look),
    inputs: inputs.map((kind) => ({ ...socket(kind), link: null })),
    outputs: [...outputs.map(socket), ...texts.map((name) => ({ name, type: "STRING" }))].map(
      (output) => ({ ...output, links: [] }),
    ),
    properties: { "Node name for S&R": type, cnr_id: "comfyui-lora-workbench" },
  };
}

// What a user gave the node; a title is saved only where it is another than the class's.
function lookOf({ title, color, bgcolor }) {
  return Object.fromEntries(Object.entries({ title, color, bgcolor }).filter(([, value]) => value));
}

// A chain of loaders is one node: rows of the one before first, as they were applied.
function fuseInto(graph, node) {
  for (let before = chained(graph, node); before; before = chained(graph, node)) {
    node.rows = [...before.rows, ...node.rows];
    for (const type of CARRIED) {
      const link = graph.linkInto(before, type);
      const own = graph.linkInto(node, type);
      if (own) graph.unlink(own);
      if (link && type === "CLIP" && !own) graph.unlink(link);
      else if (link) graph.retarget(link, node, type);
    }
    node.pos = before.pos;
    Object.assign(node, { ...lookOf(before), ...lookOf(node) });
    graph.nodes.delete(before.id);
  }
}

// The converted node right before this one whose outputs go nowhere else, or null.
function chained(graph, node) {
  const model = graph.linkInto(node, "MODEL");
  const before = model && graph.nodes.get(model.origin_id);
  if (!before?.rows || before.type !== APPLY || before.mode || node.mode) return null;
  if (graph.linkInto(node, "LORA_STACK")) return null; // it comes between the two nodes' rows
  const clip = graph.linkInto(node, "CLIP");
  if (clip && clip.origin_id !== before.id) return null;
  const isAlone = graph.linksOutOf(before).every(({ target_id: to }) => to === node.id);
  return isAlone ? before : null;
}

function seal(node) {
  const value = node.rows.length ? writeRows(node.rows) : "[]";
  delete node.rows;
  node.widgets_values = node.type === APPLY ? [value, "auto", "report"] : [value];
}
