// Other files in place of some, wherever the workflow has them.
import { say } from "./messages.js";
import { rowLists } from "./row_lists.js";
import { relinked } from "./rows/relink.js";
import { ask } from "./server.js";
import { toast } from "./toast.js";
import { openWorkflow, rememberForUndo } from "./undo.js";

// Args:
//   chosen: a Map from `{key, found, sha256, size}`, see rows/relink.js, to listed names.
//   workflow: the one that they were chosen for.
// All rows that mean one of the files change, as one step of undo.
export async function replaceFiles(app, chosen, workflow) {
  const pins = [...chosen].map(async ([file, name]) => [file.key, await pinOf(app, file, name)]);
  const files = new Map(await Promise.all(pins)); // a large file takes seconds the first time
  if (openWorkflow(app) !== workflow) return toast(app, "warn", say("relinkElsewhere"));
  for (const { widget } of rowLists(app)) {
    const text = relinked(widget.value, files);
    if (text !== null) widget.value = text;
  }
  rememberForUndo(app);
}

// A file that was found by its hash keeps it; another one is pinned anew.
async function pinOf(app, { found, sha256, size }, name) {
  if (found && sha256) return { name, sha256, size };
  try {
    return await ask("pin", { name });
  } catch ({ message: reason }) {
    toast(app, "warn", say("notPinnedWhy", { reason })); // the rows work without
    return { name };
  }
}
