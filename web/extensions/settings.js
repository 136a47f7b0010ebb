// The pack's page of ComfyUI's settings.
import { SETTINGS } from "../settings.js";

export const settings = { name: "loraWorkbench.settings", settings: SETTINGS };
