// The open weighting of a row: its text, presets, a slider per block and a number per part.
import { say } from "../messages.js";
import { element } from "./element.js";
import { readNumber } from "./rows.js";
import { factorInWords } from "./sparkline.js";
import { presetsOf } from "./weighting_presets.js";
import {
  blockFactor,
  isRules,
  partFactor,
  shown,
  withBlock,
  withPart,
} from "./weighting_rules.js";

const [LEAST, MOST, STEP] = [0, 2, 0.05]; // of a slider; a factor of the text beyond them widens it
const OWN_TEXT = "own";

// Args:
//   name: of the LoRA.
//   host.text: the weighting as it stands.
//   host.set(text): another one within a gesture, which `host.finish()` ends.
export class WeightingPanel {
  constructor(name, host) {
    this.name = name;
    this.host = host;
    this.known = null;
    this.sliders = this.numbers = [];
    this.field = this.textField();
    this.presets = element("select", {
      class: "lw-presets",
      "aria-label": say("weightingPreset", { name }),
      onchange: () => this.finish(this.presets.value),
    });
    this.readout = element("output", { class: "lw-dim" });
    this.blocks = group("lw-blocks", say("weightingBlocks"));
    this.parts = group("lw-parts", say("weightingParts"));
    const line = element("div", { class: "lw-line" }, this.presets, this.readout);
    this.element = element("div", { class: "lw-panel" }, this.field, line, this.blocks, this.parts);
    this.fillPresets(null);
  }

  // `known` is the answer of the route `blocks`, or null before it.
  show(known) {
    const names = known?.blocks.map(({ name }) => name).join();
    if (names !== this.shownNames) {
      this.shownNames = names;
      this.sliders = (known?.blocks ?? []).map(({ name }) => this.slider(name));
      this.blocks.replaceChildren(...this.sliders.map(({ label }) => label));
      this.numbers = (known?.parts ?? []).map((part) => this.partNumber(part));
      this.parts.replaceChildren(...this.numbers.map(({ label }) => label));
    }
    this.known = known;
    this.knownText = this.host.text;
    this.fillPresets(known?.family ?? null);
    this.refresh();
    if (this.block) this.read(this.block);
  }

  // What sliders change: the text itself, or the rules that a list of numbers or JSON stands for;
  // null while those are not known.
  get rules() {
    if (isRules(this.host.text)) return this.host.text;
    return this.known?.text ?? null;
  }

  // The fields as the text has them.
  refresh() {
    const { rules } = this;
    showText(this.field, this.host.text);
    const isPreset = [...this.presets.options].some(({ value }) => value === this.host.text);
    this.presets.value = isPreset ? this.host.text : OWN_TEXT;
    this.presets.title = this.presets.selectedOptions[0]?.title ?? "";
    for (const { name, input, label } of this.sliders) {
      const factor = blockFactor(rules ?? "", name);
      input.disabled = rules === null;
      input.min = Math.min(LEAST, factor);
      input.max = Math.max(MOST, factor);
      input.value = factor;
      input.setAttribute("aria-valuetext", shown(factor));
      label.title = this.told(name, factor);
    }
    for (const { name, input } of this.numbers) {
      const factor = partFactor(rules ?? "", name);
      input.disabled = rules === null;
      showText(input, factor === null ? "" : shown(factor));
    }
  }

  textField() {
    return element("input", {
      class: "lw-weighting",
      type: "text",
      placeholder: say("weightingHelp"),
      "aria-label": say("weighting", { name: this.name }),
      "data-field": "weighting",
      spellcheck: "false",
      onchange: () => this.finish(typedIn(this.field)),
    });
  }

  fillPresets(family) {
    if (this.family === family && this.presets.options.length) return;
    this.family = family;
    const own = element("option", { value: OWN_TEXT, disabled: true }, say("weightingOwn"));
    const options = presetsOf(family).map(({ label, text, title }) =>
      element("option", { value: text, title }, label),
    );
    this.presets.replaceChildren(own, ...options);
  }

  slider(name) {
    const input = element("input", {
      type: "range",
      step: STEP,
      "aria-label": say("weightingFactor", { part: name, name: this.name }),
      oninput: () => this.set(withBlock(this.rules, name, Number(input.value)), name),
      onfocus: () => this.read(name),
      onchange: () => this.host.finish(),
    });
    const sign = element("span", { "aria-hidden": "true" }, name);
    const attributes = { class: "lw-block", onpointerenter: () => this.read(name) };
    const label = element("label", attributes, input, sign);
    return { name, input, label };
  }

  partNumber({ name, targets }) {
    const input = element("input", {
      type: "text",
      inputmode: "decimal",
      placeholder: "-",
      "aria-label": say("weightingFactor", { part: name, name: this.name }),
      onchange: () => {
        const text = typedIn(input);
        const factor = readNumber(text);
        if (factor === null && text) return this.refresh();
        this.finish(withPart(this.rules, name, factor));
      },
    });
    const title = say("weightingPart", { part: name, count: targets });
    const label = element("label", { class: "lw-part", title }, name, input);
    return { name, input, label };
  }

  set(text, block) {
    this.host.set(text);
    this.refresh();
    this.read(block);
  }

  finish(text) {
    if (text !== this.host.text) {
      this.host.set(text);
      this.host.finish();
    }
    this.refresh();
  }

  read(block) {
    this.block = block;
    this.readout.textContent = this.told(block, blockFactor(this.rules ?? "", block));
  }

  // Rules over parts and names may change a block's factor in some of its weights.
  told(name, factor) {
    const block = this.known?.blocks.find((each) => each.name === name);
    const isTold = block?.least !== undefined && this.knownText === this.host.text;
    const isWhole = !isTold || (block.least === factor && block.most === factor);
    if (isWhole) return `${name}: ${shown(factor)}`;
    const all = factorInWords(block);
    return say("weightingAllRules", { block: name, factor: shown(factor), all });
  }
}

function group(name, label) {
  return element("div", { class: name, role: "group", "aria-label": label });
}

// What is being typed is not overwritten by an answer that comes meanwhile.
function showText(input, text) {
  const isTyping = document.activeElement === input && input.value !== input.dataset.shown;
  if (!isTyping) input.value = input.dataset.shown = text;
}

function typedIn(input) {
  input.dataset.shown = input.value;
  return input.value.trim();
}
