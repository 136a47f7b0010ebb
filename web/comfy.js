// The only module that names a script of ComfyUI.
export { api } from "../../scripts/api.js";
export { app } from "../../scripts/app.js";
