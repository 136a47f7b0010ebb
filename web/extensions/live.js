// Live panels, on every node of a class with the hidden input of `LIVE_INPUT` in nodes/base.py.
//
// The server sends what changes; states are kept here by workflow and node, so that undo, another
// tab and back, and two such nodes are all the same. After a reload the server is asked.

import { allNodes, nodeAt } from "../all_nodes.js";
import { api } from "../comfy.js";
import { keepShown } from "../keep_shown.js";
import { LivePanel } from "../live/panel.js";
import { States } from "../live/state.js";
import { addPanel } from "../panel.js";
import { address, ask, tell } from "../server.js";
import { scrollOrZoom } from "../wheel.js";
import { identify, workflowId } from "../workflow_id.js";

const EVENT = "lora_workbench.live";
const NAME = "lora_workbench_live";
const [WIDTH, HEIGHT] = [420, 260]; // of a panel, at least, in the canvas's pixels
const classes = new Set();
const panels = new WeakMap(); // by node
const states = new States();

export const live = {
  name: "loraWorkbench.live",

  beforeRegisterNodeDef(nodeType, { name, input }) {
    if (input?.hidden?.[NAME]) classes.add(name);
  },

  // Not in `setup`: after a reload in the midst of a run events come before that.
  init(app) {
    api.addEventListener(EVENT, ({ detail }) => {
      const isWhole = states.take(detail);
      if (detail.workflow !== workflowId(app)) return; // its panels are loaded when it is shown
      if (isWhole) show(app, detail);
      else load(app);
    });
    api.addEventListener("reconnected", () => load(app));
  },

  nodeCreated(node, app) {
    if (!classes.has(node.comfyClass)) return;
    identify(app);
    addLive(node, app);
  },

  afterConfigureGraph(missing, app) {
    for (const state of states.of(workflowId(app))) show(app, state);
    return load(app);
  },
};

function addLive(node, app) {
  const panel = new LivePanel({
    picture: ({ prompt, node: id }, number) => address("live_picture", { prompt, node: id, number }),
    keep: ({ prompt, node: id }) => tell("keep", { prompt, node: id }),
    stop: ({ prompt }) => api.interrupt(prompt),
  });
  panels.set(node, panel);
  scrollOrZoom(panel.root, app);
  keepShown(node, NAME, panel.root);
  addPanel(node, NAME, panel.root, { height: HEIGHT });
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, WIDTH), Math.max(node.size[1], height)]);
}

async function load(app) {
  const shown = [...allNodes(app)].map(({ node }) => panels.get(node)).filter(Boolean);
  if (!shown.length) return;
  const workflow = workflowId(app);
  try {
    const { panels: snapshots } = await ask("live", { workflow });
    states.load(snapshots, workflow);
  } catch ({ message }) {
    for (const panel of shown) panel.tell(message);
    return;
  }
  if (workflow === workflowId(app)) for (const state of states.of(workflow)) show(app, state);
}

function show(app, { workflow, node }) {
  panels.get(nodeAt(app, node))?.show(states.get(workflow, node));
}
