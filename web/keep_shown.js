// An undo builds the nodes anew, and Nodes 2.0 (seen in frontend 1.58) goes on showing the elements
// of the nodes before: the new node's element takes the old one's place.

const MARK = "lwWidget";

export function keepShown(node, name, element) {
  const { onAdded } = node;
  node.onAdded = function (graph) {
    onAdded?.apply(this, arguments);
    const key = `${graph.id}:${this.id}:${name}`;
    element.dataset[MARK] = key;
    setTimeout(() => requestAnimationFrame(() => takePlace(element, key)));
  };
}

function takePlace(element, key) {
  if (!window.LiteGraph?.vueNodesMode || element.isConnected) return;
  document.querySelector(`[data-lw-widget="${CSS.escape(key)}"]`)?.replaceWith(element);
}
