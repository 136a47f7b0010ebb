// What a node says after a run, on the node; an error too.
//
// It is never saved: a workflow opens with an empty panel, and neither the workflow's widget values
// nor the API prompt hold it.

import { allNodes, nodeAt } from "../all_nodes.js";
import { api } from "../comfy.js";
import { keepShown } from "../keep_shown.js";
import { addPanel } from "../panel.js";
import { errorForm } from "../report/error_form.js";
import { Errors, errorText } from "../report/errors.js";
import { ReportPanel } from "../report/panel.js";
import { workflowOfRun } from "../report/run.js";
import { scrollOrZoom } from "../wheel.js";
import { identify, workflowId } from "../workflow_id.js";

const PREFIX = "LoraWorkbench";
const NAME = "lora_workbench_report";
const TALKING = ["Apply", "Merge", "Unmerge", "SaveModel", "Inspect", "Hooks", "Dataset", "TrainSettings", "Train"];
const HEIGHT = 90; // at least; this and the sizes below in the canvas's pixels
const ROOM_FOR_TEXT = [420, 110]; // width of a fresh node with a panel, and what it gets more
const ROOM_FOR_TITLE = 320;
const panels = new WeakMap(); // by node
const errors = new Errors();

export const report = {
  name: "loraWorkbench.report",

  setup(app) {
    api.addEventListener("execution_error", ({ detail }) => noteError(app, detail));
  },

  nodeCreated(node, app) {
    if (!node.comfyClass?.startsWith(PREFIX)) return;
    const talks = TALKING.includes(node.comfyClass.slice(PREFIX.length));
    if (talks) {
      identify(app);
      addReport(node, app);
    }
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
    errors.forget(workflowId(app), outputKey(app, node));
    show(panel, output);
  };
}

function enlarge(node, talks) {
  const [width, height] = node.computeSize();
  const [wide, more] = talks ? ROOM_FOR_TEXT : [ROOM_FOR_TITLE, 0];
  node.setSize([Math.max(node.size[0], width, wide), Math.max(node.size[1], height + more)]);
}

function showAll(all, app) {
  for (const { node } of allNodes(app)) {
    const panel = panels.get(node);
    if (!panel) continue;
    const key = outputKey(app, node);
    const output = all?.[key];
    const error = errors.of(workflowId(app), key, textOf(output));
    if (error !== null) panel.show([errorForm(error)], error);
    else if (textOf(output)) show(panel, output);
  }
}

// Another tab's node may have the same number: its error is not shown here.
async function noteError(app, detail) {
  const node = nodeAt(app, detail.node_id);
  if (!panels.has(node) || node.comfyClass !== detail.node_type) return;
  const key = outputKey(app, node);
  const output = textOf(app.nodeOutputs?.[key]);
  const ask = async (route) => (await api.fetchApi(route)).json();
  const workflow = await workflowOfRun(detail.prompt_id, ask);
  if (workflow !== null && workflow !== workflowId(app)) return;
  errors.add(workflowId(app), key, errorText(detail), output);
  showAll(app.nodeOutputs, app);
}

// As ComfyUI names a node's outputs.
function outputKey(app, { id, graph }) {
  return graph === (app.rootGraph ?? app.graph) ? `${id}` : `${graph.id}:${id}`;
}

function show(panel, output) {
  panel.show(output?.lora_workbench_report ?? [], textOf(output));
}

function textOf(output) {
  return (output?.text ?? []).join("\n\n");
}
