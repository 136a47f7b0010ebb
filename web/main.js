// The only module with a side effect on load: ComfyUI imports every file of this folder.
import { app } from "./comfy.js";
import { commands } from "./extensions/commands.js";
import { convert } from "./extensions/convert.js";
import { messages } from "./extensions/messages.js";
import { report } from "./extensions/report.js";
import { rows } from "./extensions/rows.js";
import { settings } from "./extensions/settings.js";
import { addStyles } from "./styles.js";

addStyles();
for (const extension of [messages, settings, report, rows, commands, convert])
  app.registerExtension(extension);
