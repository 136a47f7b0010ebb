// Weightings that people know by name; `families` are those whose blocks they name, none for all.
import { say } from "../messages.js";

const SD = ["sd15", "sd15-inpaint", "sd21", "sd21-inpaint"];
const SDXL = ["sdxl", "sdxl-inpaint"];
const LBW = "sd-webui-lora-block-weight"; // its BLOCKID17 names the members
const B_LORA = "B-LoRA (Frenkel et al. 2024, arXiv:2403.14572)";

const PRESETS = [
  { label: () => say("presetAll"), text: "", title: () => say("presetAllHelp") },
  { label: () => say("presetNoText"), text: "te=0", title: () => say("presetNoTextHelp") },
  {
    label: () => say("presetAttention"),
    text: "default=0, attn=1",
    title: () => say("presetAttentionHelp"),
  },
  {
    label: () => say("presetIn"),
    text: "default=0, BASE=1, IN01-02=1, IN04-05=1, IN07-08=1",
    title: () => say("presetInHelp", { source: LBW }),
    families: SD,
  },
  {
    label: () => say("presetMid"),
    text: "default=0, BASE=1, IN05=1, IN07-08=1, M00=1, OUT03-06=1",
    title: () => say("presetMidHelp", { source: LBW }),
    families: SD,
  },
  {
    label: () => say("presetOut"),
    text: "default=0, BASE=1, OUT03-11=1",
    title: () => say("presetOutHelp", { source: LBW }),
    families: SD,
  },
  {
    label: () => say("presetStyle"),
    text: "default=0, OUT01=1",
    title: () => say("presetStyleHelp", { source: B_LORA }),
    families: SDXL,
  },
  {
    label: () => say("presetContent"),
    text: "default=0, OUT00=1",
    title: () => say("presetContentHelp", { source: B_LORA }),
    families: SDXL,
  },
];

// Those of a model's family (null: not known), as `{label, text, title}`.
export function presetsOf(family) {
  const those = PRESETS.filter(({ families }) => !families || families.includes(family));
  return those.map(({ label, text, title }) => ({ label: label(), text, title: title() }));
}
