// The checkpoint that a node's model comes from, found by following links upstream.

const LOADERS = { ckpt_name: "checkpoints", unet_name: "diffusion_models" };
const MODEL = "MODEL";

// Gives `{checkpoint, folder}`, or null where no loader with a file name is found.
export function checkpointOf(node, input = "model") {
  const seen = new Set();
  let at = sourceOf(node, node.inputs?.find(({ name }) => name === input));
  while (at && !seen.has(at)) {
    seen.add(at);
    for (const [name, folder] of Object.entries(LOADERS)) {
      const widget = at.widgets?.find((each) => each.name === name);
      if (typeof widget?.value === "string") return { checkpoint: widget.value, folder };
    }
    // A node with several MODEL inputs, such as a merge, is of the first one's family.
    at = sourceOf(at, at.inputs?.find(({ type, link }) => type === MODEL && link != null));
  }
  return null;
}

function sourceOf(node, input) {
  const link = input?.link == null ? null : linkOf(node.graph, input.link);
  return link && node.graph.getNodeById(link.origin_id);
}

function linkOf(graph, id) {
  return graph.links instanceof Map ? graph.links.get(id) : (graph.getLink?.(id) ?? graph.links[id]);
}
