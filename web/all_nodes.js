// The nodes of the workflow, those inside subgraphs too.

export function* allNodes(app) {
  const root = app.rootGraph ?? app.graph;
  for (const graph of [root, ...(root?.subgraphs?.values() ?? [])])
    for (const node of graph?.nodes ?? []) yield { node, graph, isRoot: graph === root };
}

// The node that a run names `12:5`: node 5 in the subgraph of node 12.
export function nodeAt(app, id) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node ?? undefined;
}
