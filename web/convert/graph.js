// One graph of a saved workflow, the root or a subgraph's definition, while its nodes are replaced.
//
// Links are worked on as objects, as subgraphs save them; the root's are arrays in files of
// version 0.4, and are written back as they came.

const LINK = ["id", "origin_id", "origin_slot", "target_id", "target_slot", "type"];

export class Graph {
  constructor(saved) {
    this.saved = saved;
    this.nodes = new Map(saved.nodes.map((node) => [node.id, node]));
    this.isOfArrays = Array.isArray(saved.links?.[0]);
    this.links = (saved.links ?? []).map((link) =>
      this.isOfArrays ? Object.fromEntries(LINK.map((key, at) => [key, link[at]])) : link,
    );
  }

  // The link into a node of ours, by the type of its socket.
  linkInto(node, type) {
    const slot = node.inputs.findIndex((input) => input.type === type);
    return this.links.find((l) => l.target_id === node.id && l.target_slot === slot) ?? null;
  }

  linksInto(node) {
    return this.links.filter(({ target_id: id }) => id === node.id);
  }

  linksOutOf(node) {
    return this.links.filter(({ origin_id: id }) => id === node.id);
  }

  unlink(gone) {
    this.links = this.links.filter((link) => link !== gone);
  }

  retarget(link, node, type) {
    link.target_id = node.id;
    link.target_slot = node.inputs.findIndex((input) => input.type === type);
  }

  // Another node under the same id: a link goes to the socket of its type, and where there is none
  // it is taken off. Gives how many were.
  replace(old, made) {
    let lost = 0;
    for (const link of this.linksInto(old)) {
      const type = old.inputs?.[link.target_slot]?.type ?? link.type;
      link.target_slot = made.inputs.findIndex((input) => input.type === type);
      if (link.target_slot < 0) lost += this.unlink(link) ?? 1;
    }
    for (const link of this.linksOutOf(old)) {
      const type = old.outputs?.[link.origin_slot]?.type ?? link.type;
      link.origin_slot = made.outputs.findIndex((output) => output.type === type);
      // Texts of ours are other texts.
      if (link.origin_slot < 0 || type === "STRING") lost += this.unlink(link) ?? 1;
    }
    this.nodes.set(old.id, made);
    return lost;
  }

  // What nodes, and a subgraph's own inputs and outputs, say of their links is written from the
  // links, the one place that tells what is connected.
  toJson() {
    const nodes = [...this.nodes.values()].map((node) => this.relinked(node));
    const ids = new Set(this.links.map(({ id }) => id));
    const port = (each) => ({ ...each, linkIds: each.linkIds?.filter((id) => ids.has(id)) });
    const { inputs, outputs } = this.saved;
    return {
      ...this.saved,
      nodes,
      links: this.isOfArrays ? this.links.map((link) => LINK.map((key) => link[key])) : this.links,
      ...(inputs ? { inputs: inputs.map(port) } : {}),
      ...(outputs ? { outputs: outputs.map(port) } : {}),
    };
  }

  relinked(node) {
    const into = new Map(this.linksInto(node).map((link) => [link.target_slot, link.id]));
    const outOf = this.linksOutOf(node);
    return {
      ...node,
      inputs: node.inputs?.map((input, slot) => ({ ...input, link: into.get(slot) ?? null })),
      outputs: node.outputs?.map((output, slot) => {
        const links = outOf.filter((link) => link.origin_slot === slot).map(({ id }) => id);
        return { ...output, links: links.length || output.links ? links : null };
      }),
    };
  }
}
