// The only module that names a script of ComfyUI.
export { app } from "../../scripts/app.js";
