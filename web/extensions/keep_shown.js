// Nodes 2.0 shows the elements of the graph that is on the canvas; see web/keep_shown.js.
import { showKept } from "../keep_shown.js";

export const keepShown = {
  name: "loraWorkbench.keepShown",

  setup(app) {
    app.canvas.canvas.addEventListener("litegraph:set-graph", showKept);
  },
};
