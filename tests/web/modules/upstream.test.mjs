// Which checkpoint a model comes from.
import assert from "node:assert/strict";
import test from "node:test";

import { checkpointOf } from "../../../web/rows/upstream.js";

// Nodes by id: `[widgets, inputs]`, an input as `[name, type, id of its source]`.
function graphOf(spec) {
  const links = new Map();
  const graph = { links, getNodeById: (id) => nodes[id] ?? null };
  const nodes = {};
  for (const [id, [widgets, inputs]] of Object.entries(spec)) {
    const made = inputs.map(([name, type, origin]) => {
      if (origin === undefined) return { name, type, link: null };
      links.set(links.size + 1, { origin_id: origin });
      return { name, type, link: links.size };
    });
    const values = Object.entries(widgets).map(([name, value]) => ({ name, value }));
    nodes[id] = { graph, inputs: made, widgets: values };
  }
  return nodes;
}

const LOADER = [{ ckpt_name: "sd15.safetensors" }, []];
const FOUND = { checkpoint: "sd15.safetensors", folder: "checkpoints" };

test("the loader is found through other nodes, by the input model", () => {
  const nodes = graphOf({
    1: LOADER,
    2: [{}, [["clip", "CLIP"], ["model", "MODEL", 1]]],
    3: [{}, [["model", "MODEL", 2]]],
  });
  assert.deepEqual(checkpointOf(nodes[3]), FOUND);
});

test("a UNet loader names its folder", () => {
  const nodes = graphOf({ 1: [{ unet_name: "flux.safetensors" }, []], 2: [{}, [["model", "MODEL", 1]]] });
  assert.deepEqual(checkpointOf(nodes[2]), {
    checkpoint: "flux.safetensors",
    folder: "diffusion_models",
  });
});

test("nothing connected, an unknown loader, or a ring: no checkpoint", () => {
  const nodes = graphOf({
    1: [{ other: 1 }, []],
    2: [{}, [["model", "MODEL", 1]]],
    3: [{}, [["model", "MODEL"]]],
    4: [{}, [["model", "MODEL", 5]]],
    5: [{}, [["model", "MODEL", 4]]],
  });
  for (const id of [2, 3, 4]) assert.equal(checkpointOf(nodes[id]), null);
});

test("links are found where they are a plain object, as in older frontends", () => {
  const nodes = graphOf({ 1: LOADER, 2: [{}, [["model", "MODEL", 1]]] });
  nodes[2].graph.links = Object.fromEntries(nodes[2].graph.links);
  assert.deepEqual(checkpointOf(nodes[2]), FOUND);
});
