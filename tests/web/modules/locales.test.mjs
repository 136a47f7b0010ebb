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
  const files = readdirSync(new URL("web/", ROOT), { recursive: true }).filter(
    (name) => name.endsWith(".js") && name !== "english.js",
  );
  const code = files.map((name) => readFileSync(new URL(`web/${name}`, ROOT), "utf8")).join("\n");
  const calls = [...code.matchAll(/\bsay\(([^,()]+)/g)].flatMap(([, key]) => key.match(/"\w+"/g) ?? []);
  assert.deepEqual(
    [...new Set(calls.map((key) => key.slice(1, -1)))].sort(),
    Object.keys(ENGLISH).sort(),
  );
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
