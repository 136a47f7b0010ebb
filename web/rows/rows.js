// The rows value of Apply LoRAs and LoRA Stack: text in, rows out, and what a user does to them.
//
// A row is `{on, name, model, clip?, weighting?, sha256?, size?}`; fields that this version does not
// know are kept, in a row and beside the rows. Rows are never changed in place: each function gives
// a new list.

import { say } from "../messages.js";

export const VERSION = 1;
export const STRENGTH_LIMIT = 100; // as core's LoRA loaders
const DECIMALS = 2;
const TAG = /<lora:([^:<>]+)(?::([^:<>]*))?(?::([^:<>]*))?>/g;
const EMPTY = /^\[\s*\]|\[\s*\]$/g; // what a fresh node holds may stand beside tags

// Text as nodes/rows.py reads it: versioned JSON, a bare list, or `<lora:name:1:0.8>` lines.
// Throws an Error in words for anything else, so that nobody's text is lost.
export function parseRows(text) {
  return readRows(text).rows;
}

// The rows, and in `others` the fields that stand beside them.
export function readRows(text) {
  const value = text.trim().replace(EMPTY, "").trim();
  if (!value) return { rows: [], others: {} };
  return /^[[{]/.test(value) ? ofJson(value) : { rows: rowsOfTags(value), others: {} };
}

export function writeRows(rows, others = {}) {
  return JSON.stringify({ version: VERSION, rows, ...others });
}

// One `<lora:name:model:clip>` a line; rows that are off and weightings are left out.
export function writeTags(rows) {
  return rows
    .filter((row) => row.on)
    .map((row) => `<lora:${row.name}:${row.model}:${row.clip ?? row.model}>`)
    .join("\n");
}

export function newRow(name, fields = {}) {
  return { on: true, name, model: 1, ...fields };
}

export function added(rows, more, at = rows.length) {
  return [...rows.slice(0, at), ...more, ...rows.slice(at)];
}

export function removed(rows, index) {
  return rows.filter((_, at) => at !== index);
}

export function duplicated(rows, index) {
  return added(rows, [{ ...rows[index] }], index + 1);
}

export function moved(rows, from, to) {
  const target = Math.min(Math.max(to, 0), rows.length - 1);
  return added(removed(rows, from), [rows[from]], target);
}

// Fields given as `undefined` are taken off the row.
export function changed(rows, index, fields) {
  const entries = Object.entries({ ...rows[index], ...fields });
  const row = Object.fromEntries(entries.filter(([, value]) => value !== undefined));
  return rows.map((other, at) => (at === index ? row : other));
}

// All on, unless all are on already.
export function toggledAll(rows) {
  const on = !rows.every((row) => row.on);
  return rows.map((row) => ({ ...row, on }));
}

// This row alone; all of them when it is alone already.
export function soloed(rows, index) {
  const alone = rows.every((row, at) => row.on === (at === index));
  return rows.map((row, at) => ({ ...row, on: alone || at === index }));
}

// A number as it was written, to the last digit; null when it is none.
export function readNumber(text) {
  if (typeof text === "number") return Number.isFinite(text) ? text : null;
  const trimmed = String(text).trim();
  const number = Number(trimmed.replace(",", "."));
  return trimmed === "" || !Number.isFinite(number) ? null : number;
}

// What a user sets: a strength within limits, without the dust of binary fractions; null when it is no number.
export function readStrength(text) {
  const number = readNumber(text);
  if (number === null) return null;
  const scale = 10 ** DECIMALS;
  const rounded = Math.round(number * scale) / scale || 0; // no -0
  return Math.min(Math.max(rounded, -STRENGTH_LIMIT), STRENGTH_LIMIT);
}

export function showStrength(value) {
  const shown = value.toFixed(DECIMALS);
  return Number(shown) === value ? shown : String(value); // what a file says is shown whole
}

function ofJson(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error(say("rowsNoJson"));
  }
  data = data.__value__ ?? data; // as API clients wrap a list
  const { version = VERSION, rows = [], ...others } = Array.isArray(data) ? { rows: data } : data;
  if (version !== VERSION) throw new Error(say("rowsNewer", { version }));
  if (!Array.isArray(rows)) throw new Error(say("rowsNoList"));
  return { rows: rows.map(checkedRow), others };
}

function checkedRow(item, index) {
  if (typeof item?.name !== "string") throw new Error(say("rowNoName", { row: index + 1 }));
  const row = newRow(item.name, item);
  const wrong = ["model", "clip"].find((key) => isWrong(key, row[key]));
  if (wrong) throw new Error(say("rowNotNumber", { row: index + 1, field: wrong }));
  for (const key of ["clip", "weighting", "sha256", "size"]) if (row[key] === null) delete row[key];
  return row;
}

// As nodes/rows.py: a CLIP strength may be null, for the model's.
function isWrong(key, value) {
  const isLeftOut = key === "clip" && (value === null || value === undefined);
  return !isLeftOut && typeof value !== "number";
}

function rowsOfTags(text) {
  const rest = text.replace(TAG, "").replace(/[\s,]+/g, "");
  if (rest) throw new Error(say("rowsNotUnderstood", { text: rest.slice(0, 40) }));
  return [...text.matchAll(TAG)].map(([tag, name, model, clip]) => {
    const strengths = [model || "1", clip || model || "1"].map(readNumber);
    if (strengths.includes(null)) throw new Error(say("tagNotNumber", { tag }));
    return newRow(name.trim(), { model: strengths[0], ...(clip ? { clip: strengths[1] } : {}) });
  });
}
