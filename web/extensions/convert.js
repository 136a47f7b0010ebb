// A command that turns the LoRA nodes of other packs into ours, as one step of undo.
import { app } from "../comfy.js";
import { convertLoras } from "../convert/convert.js";
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
  const { workflow, converted } = convertLoras(app.rootGraph?.serialize() ?? app.graph.serialize());
  if (converted) await replaceWorkflow(app, workflow);
  app.extensionManager.toast.add({
    severity: converted ? "success" : "info",
    summary: converted ? `${converted} LoRA nodes converted` : "No LoRA nodes of other packs here",
    life: 4000,
  });
}
