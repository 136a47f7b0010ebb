// A node in a saved workflow, at a place `{graph, node}` of ids, with null for the graph that holds all others.
import { allNodes } from "./all_nodes.js";

export function placeOf(app, { id, graph }) {
  return { node: id, graph: graph === (app.rootGraph ?? app.graph) ? null : graph.id };
}

// The node at the place in the workflow that is shown.
export function nodeAtPlace(app, place) {
  const isThere = ({ node, graph, isRoot }) =>
    node.id === place.node && (isRoot ? null : graph.id) === place.graph;
  return [...allNodes(app)].find(isThere)?.node;
}

// The workflow with another node at the place: `change(node)` gives it, or the same one, for which the
// workflow stays the same object.
export function withNode(workflow, place, change) {
  if (place.graph === null) return inGraph(workflow, place.node, change);
  const { definitions } = workflow;
  const subgraph = definitions?.subgraphs?.find(({ id }) => id === place.graph);
  const other = subgraph && inGraph(subgraph, place.node, change);
  if (other === subgraph) return workflow;
  const subgraphs = definitions.subgraphs.map((each) => (each === subgraph ? other : each));
  return { ...workflow, definitions: { ...definitions, subgraphs } };
}

function inGraph(graph, id, change) {
  const node = graph.nodes.find((each) => String(each.id) === String(id));
  const other = node && change(node);
  if (other === node) return graph;
  return { ...graph, nodes: graph.nodes.map((each) => (each === node ? other : each)) };
}
