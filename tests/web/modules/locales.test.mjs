import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { COMMANDS, MENU, commandId } from "../../../web/commands.js";
import { ENGLISH } from "../../../web/english.js";
import { say, translate } from "../../../web/messages.js";
import { SETTINGS } from "../../../web/settings.js";

const ROOT = new URL("../../../", import.meta.url);
const read = (name) => JSON.parse(readFileSync(new URL(`locales/en/${name}.json`, ROOT)));
const keyOf = (id) => id.replaceAll(".", "_");
const labels = Object.values(COMMANDS).map(({ label }) => label);
// Their words are names of other packs, or translated by ComfyUI.
const WITH_NAMES = ["commands.js", "settings.js", "convert/convert.js", "convert/foreign_rows.js"];
const WORDS = /(^|[^\w.])[A-Z][a-z]|[A-Za-z]{2,}[:,;.]? [A-Za-z]|(\0|^)[:,;.]? [a-z]|[a-z] (\0|$)/;
const NAMES = [
  ...["Content-Type", "AutoV2", "Enter", "Escape", "clip button"],
  ...["Files.Pictures", "Rows.NewStrength", "Rows.SeparateClip", "Rows.StrengthStep"],
  ...["Convert.Ask", "Comfy.Locale", "B-LoRA (Frenkel et al. 2024, arXiv:2403.14572)"],
  ...["Apply", "Merge", "Unmerge", "SaveModel", "Inspect", "Hooks", "Dataset", "TrainSettings", "Train"],
];
const NO_WORDS = /^(lw-|pi |LoraWorkbench)/;

const scripts = () =>
  readdirSync(new URL("web/", ROOT), { recursive: true }).filter(
    (name) => name.endsWith(".js") && name !== "english.js",
  );
const codeOf = (name) => readFileSync(new URL(`web/${name}`, ROOT), "utf8");

// Literals that read like words: a capital and a small letter, or a space between letters.
function wordsIn(code) {
  const literals = code
    .replace(/^import .*$/gm, "")
    .replace(/(^|\s)\/\/.*$/gm, "")
    .matchAll(/"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`/g);
  const texts = [...literals].map(([, plain, template]) => plain ?? template);
  return texts.filter((text) => {
    if (NAMES.includes(text) || NO_WORDS.test(text)) return false;
    return WORDS.test(text.replace(/\$\{(?:[^{}]|\{[^{}]*\})*\}/g, "\0"));
  });
}

const same = (texts) => Object.fromEntries(texts.map((text) => [text, text]));

test("the English files say what the scripts say, no more and no less", () => {
  const { loraWorkbench, menuLabels, settingsCategories, ...rest } = read("main");
  assert.deepEqual(loraWorkbench, ENGLISH);
  assert.deepEqual(menuLabels, same([MENU.at(-1), ...labels]));
  assert.deepEqual(
    settingsCategories,
    same([...new Set(SETTINGS.flatMap(({ category }) => category.slice(0, 2)))]),
  );
  assert.deepEqual(rest, {});
  const commands = Object.entries(COMMANDS).map(([name, { label }]) => [commandId(name), { label }]);
  assert.deepEqual(read("commands"), Object.fromEntries(commands.map(([id, texts]) => [keyOf(id), texts])));
  const settings = SETTINGS.map(({ id, name, tooltip }) => [
    keyOf(id),
    tooltip ? { name, tooltip } : { name },
  ]);
  assert.deepEqual(read("settings"), Object.fromEntries(settings));
});

test("every text is said, and every text that is said exists", () => {
  const code = scripts()
    .map((name) => codeOf(name))
    .join("\n");
  const calls = [...code.matchAll(/\bsay\(([^,()]+)/g)].flatMap(([, key]) => key.match(/"\w+"/g) ?? []);
  assert.deepEqual(
    [...new Set(calls.map((key) => key.slice(1, -1)))].sort(),
    Object.keys(ENGLISH).sort(),
  );
});

test("no script has words of its own", () => {
  const found = scripts()
    .filter((name) => !WITH_NAMES.includes(name))
    .flatMap((name) => wordsIn(codeOf(name)).map((text) => `${name}: ${text}`));
  assert.deepEqual(found, []);
});

test("words of its own are found", () => {
  const told = ["Base", "+ Add LoRA", "CLIP strength", "leave as it is", " Copied.", "Fix: ", "LoRAs"];
  for (const text of told) assert.deepEqual(wordsIn(`element("p", {}, "${text}")`), [text]);
  for (const text of ["${name} on", "step ${n}", "and ${a - b} more", "${a}, with all ${f({ b })}"])
    assert.equal(wordsIn(`({ title: \`${text}\` })`).length, 1, text);
  const none = ["lw-row lw-off", "pi pi-copy", "aria-label", "IN04", "keydown", "LoraWorkbenchApply"];
  for (const text of none) assert.deepEqual(wordsIn(`"${text}"`), [], text);
});

test("a text in the chosen language, in English where that has none", () => {
  assert.equal(say("filesAddSeveral", { count: 3 }), "Add 3");
  let language = "ko";
  translate({ ko: { filesAddSeveral: "{count}개 추가" } }, () => language);
  assert.equal(say("filesAddSeveral", { count: 3 }), "3개 추가");
  assert.equal(say("filesAdd"), "Add");
  language = "fr";
  assert.equal(say("filesAddSeveral", { count: "{count}" }), "Add {count}");
});
