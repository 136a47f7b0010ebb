// What a node says after a run, on the node; an error too.
//
// It is never saved: a workflow opens with an empty panel, and neither the workflow's widget values
// nor the API prompt hold it.

import { allNodes, nodeAt } from "../all_nodes.js";
import { api } from "../comfy.js";
import { keepShown } from "../keep_shown.js";
import { addPanel } from "../panel.js";
import { errorForm } from "../report/error_form.js";
import { ReportPanel } from "../report/panel.js";
import { scrollOrZoom } from "../wheel.js";

const PREFIX = "LoraWorkbench";
const NAME = "lora_workbench_report";
const TALKING = ["Apply", "Merge", "Unmerge", "SaveModel", "Inspect", "Hooks", "Dataset", "TrainSettings", "Train"];
const HEIGHT = 90; // at least; this and the sizes below in the canvas's pixels
const ROOM_FOR_TEXT = [420, 110]; // width of a fresh node with a panel, and what it gets more
const ROOM_FOR_TITLE = 320;
const panels = new WeakMap(); // by node
const outputs = new WeakMap(); // by panel, the text of the run's output that it showed last

export const report = {
  name: "loraWorkbench.report",

  setup(app) {
    api.addEventListener("execution_error", ({ detail }) => {
      const text = detail.exception_message ?? "";
      panels.get(nodeAt(app, detail.node_id))?.show([errorForm(text)], text);
    });
  },

  nodeCreated(node, app) {
    if (!node.comfyClass?.startsWith(PREFIX)) return;
    const talks = TALKING.includes(node.comfyClass.slice(PREFIX.length));
    if (talks) addReport(node, app);
    enlarge(node, talks);
  },

  // Undo and a change of tab build the nodes anew; the outputs of the last run are still there.
  afterConfigureGraph(missing, app) {
    showAll(app.nodeOutputs, app);
  },

  onNodeOutputsUpdated(all, app) {
    showAll(all, app);
  },
};

function addReport(node, app) {
  const panel = new ReportPanel();
  panels.set(node, panel);
  scrollOrZoom(panel.root, app);
  keepShown(node, NAME, panel.root);
  addPanel(node, NAME, panel.root, { text: () => panel.text, height: HEIGHT });
  const { onExecuted } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    show(panel, output);
  };
}

function enlarge(node, talks) {
  const [width, height] = node.computeSize();
  const [wide, more] = talks ? ROOM_FOR_TEXT : [ROOM_FOR_TITLE, 0];
  node.setSize([Math.max(node.size[0], width, wide), Math.max(node.size[1], height + more)]);
}

// An error that came later than an output stays.
function showAll(all, app) {
  for (const { node, graph, isRoot } of allNodes(app)) {
    const output = all?.[isRoot ? `${node.id}` : `${graph.id}:${node.id}`];
    const panel = panels.get(node);
    if (panel && output && textOf(output) !== outputs.get(panel)) show(panel, output);
  }
}

function show(panel, output) {
  outputs.set(panel, textOf(output));
  panel.show(output?.lora_workbench_report ?? [], textOf(output));
}

function textOf(output) {
  return (output?.text ?? []).join("\n\n");
}
