// The dialog to choose LoRA files, with pictures or without as the settings say.
import { pickLoras } from "./rows/picker.js";
import { ask, previewAddress } from "./server.js";
import { settingOf } from "./settings.js";

// A promise of the chosen names; `query` is what is searched for at first.
export function pickFiles(app, query) {
  const files = ask("loras").then(({ loras }) => loras);
  return pickLoras(files, settingOf(app, "Files.Pictures") ? previewAddress : null, query);
}
