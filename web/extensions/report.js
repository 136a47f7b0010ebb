// What a node says after a run (`ui.text`), as a text box on the node.
//
// The box is never saved: a workflow opens with it empty, and neither the workflow's widget values
// nor the API prompt hold it.

import { allNodes } from "../all_nodes.js";
import { keepShown } from "../keep_shown.js";
import { scrollOrZoom } from "../wheel.js";

const PREFIX = "LoraWorkbench";
const NAME = "lora_workbench_report";
const TALKING = ["Apply", "Merge", "Unmerge", "SaveModel", "Inspect", "Hooks"];
const BOX_HEIGHT = 90; // at least; this and the sizes below in the canvas's pixels
const ROOM_FOR_TEXT = [420, 110]; // width of a fresh node with a box, and what its box gets more
const ROOM_FOR_TITLE = 320;

export const report = {
  name: "loraWorkbench.report",

  nodeCreated(node, app) {
    if (!node.comfyClass?.startsWith(PREFIX)) return;
    const talks = TALKING.includes(node.comfyClass.slice(PREFIX.length));
    if (talks) addBox(node, app);
    enlarge(node, talks);
  },

  // Undo and a change of tab build the nodes anew; the outputs of the last run are still there.
  afterConfigureGraph(missing, app) {
    fillBoxes(app.nodeOutputs, app);
  },

  onNodeOutputsUpdated(outputs, app) {
    fillBoxes(outputs, app);
  },
};

function addBox(node, app) {
  const box = document.createElement("textarea");
  box.className = "comfy-multiline-input lw-report";
  box.setAttribute("aria-label", "What happened in the last run");
  box.readOnly = true;
  box.spellcheck = false;
  box.placeholder = "After a run: what happened";
  scrollOrZoom(box, app);
  keepShown(node, NAME, box);
  const widget = node.addDOMWidget(NAME, NAME, box, {
    serialize: false, // not into the API prompt
    getValue: () => box.value,
    setValue: (text) => (box.value = text),
    getMinHeight: () => BOX_HEIGHT,
  });
  widget.serialize = false; // nor into the workflow
  const { onExecuted } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    widget.value = textOf(output);
  };
}

function enlarge(node, talks) {
  const [width, height] = node.computeSize();
  const [wide, more] = talks ? ROOM_FOR_TEXT : [ROOM_FOR_TITLE, 0];
  node.setSize([Math.max(node.size[0], width, wide), Math.max(node.size[1], height + more)]);
}

function fillBoxes(outputs, app) {
  for (const { node, graph, isRoot } of allNodes(app)) {
    const widget = node.widgets?.find(({ name }) => name === NAME);
    const key = isRoot ? `${node.id}` : `${graph.id}:${node.id}`;
    if (widget && outputs?.[key]) widget.value = textOf(outputs[key]);
  }
}

function textOf(output) {
  return (output?.text ?? []).join("\n\n");
}
