// A command that turns the LoRA nodes of other packs into ours, as one step of undo.
import { app } from "../comfy.js";
import { offered } from "../commands.js";
import { convertLoras } from "../convert/convert.js";
import { told } from "../convert/told.js";
import { say } from "../messages.js";
import { settingOf } from "../settings.js";
import { replaceWorkflow } from "../undo.js";

export const convert = {
  name: "loraWorkbench.convert",
  ...offered({ ConvertLoras: convertCanvas }),
};

async function convertCanvas() {
  const found = convertLoras((app.rootGraph ?? app.graph).serialize());
  if (found.converted) {
    if (settingOf(app, "Convert.Ask") && !(await isWanted())) return;
    await replaceWorkflow(app, found.workflow);
  }
  app.extensionManager.toast.add({ ...told(found), life: 8000 });
}

function isWanted() {
  const question = { title: say("askConvertTitle"), message: say("askConvert") };
  return app.extensionManager.dialog.confirm(question);
}
