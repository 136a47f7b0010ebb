// LoRA nodes of ComfyUI and other packs: which rows their saved widget values mean.
//
// Layouts as the packs' own nodes save them; a node whose pack is missing keeps its values too.

import { newRow, readNumber } from "../rows/rows.js";

const NOTHING = ["", "None", "none", "NONE"];

// By node type, from `widgets_values` to rows.
export const ROWS_OF = {
  LoraLoader: ([name, model, clip]) => [row(name, model, clip)],
  LoraLoaderModelOnly: ([name, model]) => [row(name, model, 0)],
  "Power Lora Loader (rgthree)": powerRows,
  "CR LoRA Stack": switchedRows,
  "CR Load LoRA": switchedRows,
  "LoRA Stacker": efficiencyRows,
  "Lora Loader (LoraManager)": managerRows,
  "Lora Stacker (LoraManager)": managerRows,
};

// Rows of a node, or null for a node that is no LoRA node we know.
export function rowsOfNode({ type, widgets_values: values, properties }) {
  const read = Object.hasOwn(ROWS_OF, type) ? ROWS_OF[type] : null;
  const rows = read && Array.isArray(values) ? read(values, properties ?? {}) : null;
  return rows && rows.filter(Boolean);
}

function row(name, model, clip, on = true) {
  if (typeof name !== "string" || NOTHING.includes(name)) return null;
  const strength = readNumber(model ?? 1) ?? 1;
  const fields = { on: Boolean(on), model: strength };
  const own = clip == null ? null : readNumber(clip);
  return newRow(name, own === null || own === strength ? fields : { ...fields, clip: own });
}

// The property says whether a CLIP strength counts; where it does, an empty one counts as 1.
function powerRows(values, properties) {
  const isSeparate = properties["Show Strengths"] === "Separate Model & Clip";
  return values
    .filter((value) => typeof value?.lora === "string")
    .map(({ lora, strength, strengthTwo, on }) =>
      row(lora, strength, isSeparate ? (strengthTwo ?? 1) : null, on),
    );
}

function switchedRows(values) {
  return slices(values, 4).map(([on, name, model, clip]) => row(name, model, clip, on === "On"));
}

// "simple" has one weight for both; the rest of up to 49 rows is hidden and does not count.
// Another first value is of a version of 2023, whose three rows were laid out otherwise.
function efficiencyRows([mode, count, ...values]) {
  if (!["simple", "advanced"].includes(mode)) return null;
  return slices(values, 4)
    .slice(0, count)
    .map(([name, weight, model, clip]) =>
      mode === "simple" ? row(name, weight) : row(name, model, clip),
    );
}

function managerRows(values) {
  const list = values.map((value) => value?.__value__ ?? value).find(Array.isArray) ?? [];
  return list.map(({ name, strength, clipStrength, active }) =>
    row(name, strength, clipStrength, active ?? false),
  );
}

function slices(values, size) {
  const count = Math.floor(values.length / size);
  return Array.from({ length: count }, (_, at) => values.slice(at * size, (at + 1) * size));
}
