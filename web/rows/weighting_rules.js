// A weighting's text as far as sliders set it: rules over whole blocks and over whole parts.
//
// The grammar is Python's (docs/weighting.md). What is not read here keeps its words and its place.

const SHORT = /^(IN|OUT|M|D|S)(\d{1,3})(?:-(?:\1)?(\d{1,3}))?$/i;
const LISTED = /^([a-z_]\w*\.)(\d{1,3})(?:-(\d{1,3}))?$/i;
const NUMBERED = /^(.*?)(\d+)$/;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const PART = /^[a-z]\w*$/;
const ORDER = ["BASE", "IN", "M", "OUT"];

// Whether the text is rules at all, not a list of numbers and not JSON.
export function isRules(text) {
  return !text.trim() || (text.includes("=") && !/^[[{]/.test(text.trim()));
}

// The text as one field shows it; its separators are a comma or the end of a line, but in JSON.
export function oneLine(text) {
  const trimmed = text.trim();
  if (/^[[{]/.test(trimmed)) return trimmed.replace(/\s*\n\s*/g, " ");
  return trimmed.replace(/\s*(?:,\s*\n|\n\s*,?)\s*/g, ", ");
}

// The factor that rules over blocks give to one; parts and other rules are not looked at.
export function blockFactor(text, block) {
  const rules = readRules(text);
  return rules.findLast(({ blocks }) => blocks?.includes(block))?.factor ?? defaultOf(rules);
}

// The text with another factor of one block, as it is shown; all others keep theirs. The run of rules over blocks that decides it is
// written anew, as short as it can be; a first one stands before other rules, which overrule it.
export function withBlock(text, block, factor) {
  const rules = readRules(text);
  const isBlocks = (rule) => rule?.blocks !== undefined;
  const decides = rules.findLastIndex(({ blocks }) => blocks?.includes(block));
  let first = decides >= 0 ? decides : rules.findIndex(isBlocks);
  if (first < 0) first = rules.findIndex((rule) => !rule.isDefault);
  if (first < 0) first = rules.length;
  while (isBlocks(rules[first - 1])) first--;
  let end = first;
  while (isBlocks(rules[end])) end++;

  const factors = new Map();
  for (const rule of rules.slice(first, end))
    for (const name of rule.blocks) factors.set(name, rule.factor);
  const isNeedless = factor === defaultOf(rules) && rules.slice(0, first).every((r) => r.isDefault);
  if (isNeedless) factors.delete(block);
  else factors.set(block, Number(shown(factor)));
  const written = inRanges([...factors].map(([name, value]) => ({ name, factor: value })));
  const run = written.map((range) => ({ text: `${range.select}=${range.factor}` }));
  return writeRules([...rules.slice(0, first), ...run, ...rules.slice(end)]);
}

// The factor of a part's own rule; null when it has none.
export function partFactor(text, part) {
  return readRules(text).findLast((rule) => rule.part === part)?.factor ?? null;
}

// The text with another factor of a part, or, with null, without a rule of its own.
export function withPart(text, part, factor) {
  const rules = readRules(text);
  const last = rules.findLast((rule) => rule.part === part);
  if (factor === null) return writeRules(rules.filter((rule) => rule.part !== part));
  const rule = { text: `${part}=${factor}` };
  return writeRules(last ? rules.map((each) => (each === last ? rule : each)) : [...rules, rule]);
}

// Neighbours of one factor as one: `[{name, factor}]` to `[{select: "IN04-08", factor}]`.
export function inRanges(blocks) {
  const sorted = blocks.map((block) => ({ ...block, ...placeOf(block.name) }));
  sorted.sort((a, b) => a.rank - b.rank || compare(a.list, b.list) || a.number - b.number);
  const ranges = [];
  for (const { name, list, number, factor } of sorted) {
    const last = ranges.at(-1);
    const isNext = last?.list === list && number !== null && last.to === number - 1;
    if (isNext && last.factor === factor) last.to = number;
    else ranges.push({ name, list, factor, to: number });
  }
  return ranges.map(({ name, list, factor, to }) => {
    const end = to === null || name === list + padded(to) ? "" : `-${padded(to)}`;
    return { select: name + end, factor };
  });
}

// A factor as it is read out and as a slider sets it.
export function shown(factor) {
  return String(Math.round(factor * 1000) / 1000 || 0);
}

function readRules(text) {
  const items = text.split(/[,\n]/).map((item) => item.trim());
  return items.filter(Boolean).map(readRule);
}

function writeRules(rules) {
  return rules.map((rule) => rule.text).join(", ");
}

function readRule(text) {
  const at = text.lastIndexOf("=");
  const select = text.slice(0, at).trim();
  const number = text.slice(at + 1).trim();
  if (at < 0 || !NUMBER.test(number)) return { text };
  const factor = Number(number);
  if (select === "default") return { text, factor, isDefault: true };
  const blocks = blocksOf(select);
  if (blocks) return { text, factor, blocks };
  return PART.test(select) ? { text, factor, part: select } : { text };
}

function blocksOf(select) {
  if (select.toUpperCase() === "BASE") return ["BASE"];
  const short = SHORT.exec(select);
  const found = short ?? LISTED.exec(select);
  if (!found) return null;
  const list = short ? found[1].toUpperCase() : found[1].toLowerCase();
  const [first, last] = [Number(found[2]), Number(found[3] ?? found[2])];
  if (last < first) return null;
  return Array.from({ length: last - first + 1 }, (_, step) => list + padded(first + step));
}

function defaultOf(rules) {
  return rules.findLast(({ isDefault }) => isDefault)?.factor ?? 1;
}

function placeOf(name) {
  const found = NUMBERED.exec(name);
  const list = found ? found[1] : name;
  const rank = ORDER.includes(list) ? ORDER.indexOf(list) : ORDER.length;
  return { list, number: found ? Number(found[2]) : null, rank };
}

function padded(number) {
  return String(number).padStart(2, "0");
}

function compare(a, b) {
  return a < b ? -1 : Number(a > b);
}
