// The only module with a side effect on load: ComfyUI imports every file of this folder.
import { app } from "./comfy.js";
import { report } from "./extensions/report.js";

for (const extension of [report]) app.registerExtension(extension);
