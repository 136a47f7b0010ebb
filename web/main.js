// The only module with a side effect on load: ComfyUI imports every file of this folder.
import { app } from "./comfy.js";
import { convert } from "./extensions/convert.js";
import { keepShown } from "./extensions/keep_shown.js";
import { live } from "./extensions/live.js";
import { relink } from "./extensions/relink.js";
import { report } from "./extensions/report.js";
import { rows } from "./extensions/rows.js";
import { addStyles } from "./styles.js";

addStyles();
for (const extension of [convert, keepShown, live, relink, report, rows]) app.registerExtension(extension);
