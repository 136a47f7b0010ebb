// The pins of added files, which come when a file is hashed: seconds later for a large one.
//
// They are no step of undo: they go into the states that undo and redo go to, too, also when the node
// was built anew meanwhile, or another workflow is shown.
import { pinnedNode } from "./rows/pins.js";
import { nodeAtPlace, placeOf, withNode } from "./saved_node.js";
import { ask } from "./server.js";
import { amendHistory, openWorkflow, restored } from "./undo.js";

// Args:
//   names: of the files that were added to the rows of `node`.
//   addingOf(node): what takes the pins of a node's rows, see rows/adding.js.
export async function pinAdded(app, node, names, addingOf) {
  const workflow = openWorkflow(app);
  const place = placeOf(app, node);
  for (const name of new Set(names)) {
    const pin = await ask("pin", { name }).catch((error) => ({ problem: error.message }));
    await restored(workflow);
    const shown = openWorkflow(app) === workflow ? addingOf(nodeAtPlace(app, place)) : null;
    if (pin.problem) {
      shown?.notPinned(name, pin.problem);
      continue;
    }
    shown?.pinned(name, pin);
    const pinned = (saved) => pinnedNode(saved, name, pin);
    amendHistory(app, workflow, (state) => withNode(state, place, pinned));
  }
}
