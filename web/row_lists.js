// The nodes that hold rows of LoRAs, and the lists of a workflow.
import { allNodes } from "./all_nodes.js";

export const [APPLY, STACK] = ["LoraWorkbenchApply", "LoraWorkbenchStack"];
export const ROW_NODES = [APPLY, STACK];
export const ROWS_INPUT = "rows";

// As `{widget, label}`; a node's title and number are what people know it by.
export function* rowLists(app) {
  for (const { node } of allNodes(app)) {
    const widget = ROW_NODES.includes(node.type) && node.widgets?.find(({ name }) => name === ROWS_INPUT);
    if (widget) yield { widget, label: `${node.title} (${node.id})` };
  }
}
