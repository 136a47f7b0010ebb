// A command that turns the LoRA nodes of other packs into ours, as one step of undo.
import { app } from "../comfy.js";
import { offered } from "../commands.js";
import { convertLoras } from "../convert/convert.js";
import { say } from "../messages.js";
import { settingOf } from "../settings.js";
import { toast } from "../toast.js";
import { replaceWorkflow } from "../undo.js";

export const convert = {
  name: "loraWorkbench.convert",
  ...offered({ ConvertLoras: convertCanvas }),
};

async function convertCanvas() {
  const { workflow, converted } = convertLoras(app.rootGraph?.serialize() ?? app.graph.serialize());
  if (!converted) return toast(app, "info", say("noneToConvert"));
  if (settingOf(app, "Convert.Ask") && !(await isWanted())) return;
  await replaceWorkflow(app, workflow);
  toast(app, "success", say("converted", { count: converted }));
}

function isWanted() {
  const question = { title: say("askConvertTitle"), message: say("askConvert") };
  return app.extensionManager.dialog.confirm(question);
}
