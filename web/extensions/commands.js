// Commands for the rows of the selected node, each with a key.
import { app } from "../comfy.js";
import { offered } from "../commands.js";
import { say } from "../messages.js";
import { toggledAll } from "../rows/rows.js";
import { toast } from "../toast.js";
import { lookAgain } from "./relink.js";
import { editorOf, recheck } from "./rows.js";

export const commands = {
  name: "loraWorkbench.commands",
  ...offered({
    AddLoras: () => onSelected((editor) => editor.add()),
    ToggleAll: () => onSelected((editor) => editor.update(toggledAll(editor.rows))),
    ShowDetails: () => onSelected(showDetails),
    Recheck() {
      recheck(app);
      lookAgain({ always: false });
      toast(app, "info", say("rechecked"));
    },
  }),
};

function onSelected(act) {
  const selected = Object.values(app.canvas.selected_nodes ?? {});
  const editor = selected.map(editorOf).find(Boolean);
  if (!editor) return toast(app, "info", say("noneSelected"));
  return editor.unreadable ? toast(app, "error", editor.unreadable.message) : act(editor);
}

function showDetails(editor) {
  const view = editor.currentView;
  return view ? editor.details(view) : toast(app, "info", say("noRows"));
}
