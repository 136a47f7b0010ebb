// LoRA nodes of ComfyUI and other packs: which rows their saved widget values mean.
//
// Layouts as the packs' own nodes save them; a node whose pack is missing keeps its values too.

import { newRow, readNumber } from "../rows/rows.js";

const NOTHING = ["", "None", "none", "NONE"];

// By node type, from `widgets_values` to rows.
export const ROWS_OF = {
  LoraLoader: ([name, model, clip]) => [row(name, model, clip)],
  LoraLoaderModelOnly: ([name, model]) => [row(name, model, 0)],
  "Power Lora Loader (rgthree)": (values) =>
    values
      .filter((value) => typeof value?.lora === "string")
      .map(({ lora, strength, strengthTwo, on }) => row(lora, strength, strengthTwo, on)),
  "CR LoRA Stack": (values) =>
    slices(values, 4).map(([on, name, model, clip]) => row(name, model, clip, on === "On")),
  "LoRA Stacker": efficiencyRows,
  "Lora Loader (LoraManager)": managerRows,
  "Lora Stacker (LoraManager)": managerRows,
};

// Rows of a node, or null for a node that is no LoRA node we know.
export function rowsOfNode({ type, widgets_values: values }) {
  const read = Object.hasOwn(ROWS_OF, type) ? ROWS_OF[type] : null;
  return read && Array.isArray(values) ? read(values).filter(Boolean) : null;
}

function row(name, model, clip, on = true) {
  if (typeof name !== "string" || NOTHING.includes(name)) return null;
  const strength = readNumber(model ?? 1) ?? 1;
  const fields = { on: Boolean(on), model: strength };
  const own = clip == null ? null : readNumber(clip);
  return newRow(name, own === null || own === strength ? fields : { ...fields, clip: own });
}

// "simple" has one weight for both; the rest of up to 49 rows is hidden and does not count.
function efficiencyRows([mode, count, ...values]) {
  return slices(values, 4)
    .slice(0, count)
    .map(([name, weight, model, clip]) =>
      mode === "simple" ? row(name, weight) : row(name, model, clip),
    );
}

function managerRows(values) {
  const list = values.map((value) => value?.__value__ ?? value).find(Array.isArray) ?? [];
  return list.map(({ name, strength, clipStrength, active }) =>
    row(name, strength, clipStrength, active ?? true),
  );
}

function slices(values, size) {
  const count = Math.floor(values.length / size);
  return Array.from({ length: count }, (_, at) => values.slice(at * size, (at + 1) * size));
}
