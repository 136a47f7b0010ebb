// The settings page "LoRA Workbench": every default is what the canvas does without a setting.

const PAGE = "LoRA Workbench";

export const SETTINGS = [
  {
    id: "LoraWorkbench.Rows.StrengthStep",
    category: [PAGE, "LoRA rows", "StrengthStep"],
    name: "Step of a strength",
    tooltip: "By arrows, wheel and drag. With Shift the step is 0.01.",
    type: "number",
    attrs: { min: 0.01, max: 1, step: 0.01, maxFractionDigits: 2 },
    defaultValue: 0.05,
  },
  {
    id: "LoraWorkbench.Rows.NewStrength",
    category: [PAGE, "LoRA rows", "NewStrength"],
    name: "Strength of an added LoRA",
    tooltip: "1 is what a LoRA was trained for.",
    type: "number",
    attrs: { min: -100, max: 100, step: 0.05, maxFractionDigits: 2 },
    defaultValue: 1,
  },
  {
    id: "LoraWorkbench.Rows.SeparateClip",
    category: [PAGE, "LoRA rows", "SeparateClip"],
    name: "Give an added LoRA its own CLIP strength",
    type: "boolean",
    defaultValue: false,
  },
  {
    id: "LoraWorkbench.Files.Pictures",
    category: [PAGE, "LoRA files", "Pictures"],
    name: "Show pictures in the list of LoRA files",
    type: "boolean",
    defaultValue: true,
  },
  {
    id: "LoraWorkbench.Convert.Ask",
    category: [PAGE, "LoRA conversion", "Ask"],
    name: "Ask before LoRA nodes are converted",
    type: "boolean",
    defaultValue: false,
  },
];

// The value that the user chose, or the default of a number whose field was emptied:
// `settingOf(app, "Rows.NewStrength")`.
export function settingOf(app, name) {
  const { id, type, defaultValue } = SETTINGS.find((each) => each.id === `LoraWorkbench.${name}`);
  const value = app.extensionManager.setting.get(id);
  return type === "number" && !Number.isFinite(value) ? defaultValue : value;
}
