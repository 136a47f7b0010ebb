// The only module with a side effect on load: ComfyUI imports every file of this folder.
import { app } from "./comfy.js";
import { commands } from "./extensions/commands.js";
import { convert } from "./extensions/convert.js";
import { keepShown } from "./extensions/keep_shown.js";
import { live } from "./extensions/live.js";
import { messages } from "./extensions/messages.js";
import { relink } from "./extensions/relink.js";
import { report } from "./extensions/report.js";
import { rows } from "./extensions/rows.js";
import { settings } from "./extensions/settings.js";
import { addStyles } from "./styles.js";

addStyles();
const extensions = [messages, settings, keepShown, live, report, rows, relink, commands, convert];
for (const extension of extensions) app.registerExtension(extension);
