// The texts of locales/*/main.json, before the first node is made.
import { api } from "../comfy.js";
import { translate } from "../messages.js";

export const messages = {
  name: "loraWorkbench.messages",

  async init(app) {
    const all = Object.entries(await (await api.fetchApi("/i18n")).json());
    const ours = all.map(([language, { loraWorkbench }]) => [language, loraWorkbench]);
    const chosen = () => app.extensionManager.setting.get("Comfy.Locale");
    translate(Object.fromEntries(ours), chosen);
  },
};
