// Nodes 2.0 (seen in frontend 1.58) goes on showing the elements of a node that has gone, where
// another one of its id takes its place: after an undo, which builds the nodes anew, and in a
// subgraph. The new node's element takes the old one's place.
import { app } from "./comfy.js";

const kept = new WeakMap(); // by node, elements by the name of their widget

export function keepShown(node, name, element) {
  kept.set(node, { ...kept.get(node), [name]: element });
  const { onAdded } = node;
  node.onAdded = function () {
    onAdded?.apply(this, arguments);
    element.dataset.lwWidget = `${this.id}:${name}`;
    takePlace(this, element);
    soon(() => takePlace(this, element));
  };
}

// For another graph on the canvas.
export function showKept() {
  soon(() => {
    for (const node of app.canvas.graph?.nodes ?? [])
      for (const element of Object.values(kept.get(node) ?? {})) takePlace(node, element);
  });
}

function soon(act) {
  setTimeout(() => requestAnimationFrame(act));
}

function takePlace(node, element) {
  if (!window.LiteGraph?.vueNodesMode || element.isConnected) return;
  if (node.graph !== app.canvas.graph) return; // an equal id in a graph that is not shown
  const selector = `[data-lw-widget="${CSS.escape(element.dataset.lwWidget)}"]`;
  document.querySelector(selector)?.replaceWith(element);
}
