// Weightings that people know by name; `families` are those whose blocks they name, none for all.

const SD = ["sd15", "sd15-inpaint", "sd21", "sd21-inpaint"];
const SDXL = ["sdxl", "sdxl-inpaint"];
const LBW = "sd-webui-lora-block-weight"; // its BLOCKID17 names the members
const B_LORA = "B-LoRA (Frenkel et al. 2024, arXiv:2403.14572)";

const PRESETS = [
  { label: "All 1", text: "", title: "Every block as it was trained: no rule." },
  { label: "No text encoder", text: "te=0", title: "The diffusion model alone is changed." },
  {
    label: "Only attention",
    text: "default=0, attn=1",
    title: "Attention layers alone, of text encoders too.",
  },
  {
    label: "INALL: input blocks",
    text: "default=0, BASE=1, IN01-02=1, IN04-05=1, IN07-08=1",
    title: `Text encoder and input blocks, as INALL of ${LBW}.`,
    families: SD,
  },
  {
    label: "MIDD: deep blocks",
    text: "default=0, BASE=1, IN05=1, IN07-08=1, M00=1, OUT03-06=1",
    title: `Text encoder and the blocks around the middle, as MIDD of ${LBW}.`,
    families: SD,
  },
  {
    label: "OUTALL: output blocks",
    text: "default=0, BASE=1, OUT03-11=1",
    title: `Text encoder and output blocks, as OUTALL of ${LBW}.`,
    families: SD,
  },
  {
    label: "Style block",
    text: "default=0, OUT01=1",
    title: `Only the block that holds style, by ${B_LORA}.`,
    families: SDXL,
  },
  {
    label: "Content block",
    text: "default=0, OUT00=1",
    title: `Only the block that holds content and composition, by ${B_LORA}.`,
    families: SDXL,
  },
];

// Those of a model's family (null: not known), as `{label, text, title}`.
export function presetsOf(family) {
  return PRESETS.filter(({ families }) => !families || families.includes(family));
}
