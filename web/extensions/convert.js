// A command that turns the LoRA nodes of other packs into ours, as one step of undo.
import { app } from "../comfy.js";
import { convertLoras } from "../convert/convert.js";
import { told } from "../convert/told.js";
import { replaceWorkflow } from "../undo.js";

const COMMAND = "LoraWorkbench.ConvertLoras";

export const convert = {
  name: "loraWorkbench.convert",
  commands: [
    {
      id: COMMAND,
      icon: "pi pi-sync",
      label: "Convert LoRA loaders and stacks to Apply LoRAs",
      function: convertCanvas,
    },
  ],
  menuCommands: [{ path: ["Extensions", "LoRA Workbench"], commands: [COMMAND] }],
};

async function convertCanvas() {
  const found = convertLoras((app.rootGraph ?? app.graph).serialize());
  if (found.converted) await replaceWorkflow(app, found.workflow);
  app.extensionManager.toast.add({ ...told(found), life: 8000 });
}
