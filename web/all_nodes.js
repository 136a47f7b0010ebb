// Every node of the workflow with its graph, those inside subgraphs too.

export function* allNodes(app) {
  const root = app.rootGraph ?? app.graph;
  for (const graph of [root, ...(root?.subgraphs?.values() ?? [])])
    for (const node of graph?.nodes ?? []) yield { node, graph, isRoot: graph === root };
}
