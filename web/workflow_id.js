// Which workflow is on the canvas, by the id that is saved in it and that a run brings along.

const CLEARED = "00000000-0000-0000-0000-000000000000";

// A canvas that was cleared has an id of zeros, and gets a new one with each undo.
export function identify(app) {
  const graph = app.rootGraph ?? app.graph;
  if (graph.id === CLEARED) graph.id = window.LiteGraph.uuidv4();
}

export function workflowId(app) {
  return (app.rootGraph ?? app.graph)?.id ?? "";
}
