// A report as people read it. Its form is that of `Report.to_ui` in nodes/report_form.py.
import { copyText } from "../clipboard.js";
import { barChart } from "./bars.js";
import { say } from "../messages.js";
import { keepInside } from "../panel.js";
import { element } from "../rows/element.js";

const MARKS = {
  ok: ["\u2713", () => say("reportGood")],
  partial: ["\u25b2", () => say("reportInPart")],
  wrong: ["\u2715", () => say("reportWrong")],
};
const COPIED_FOR = 2000; // milliseconds

export class ReportPanel {
  constructor() {
    this.text = null;
    this.status = element("h3", { class: "lw-headline", role: "status", "aria-live": "polite" });
    this.copy = element("button", { type: "button", onclick: () => this.onCopy() }, say("copy"));
    this.copy.title = say("reportCopyHelp");
    this.body = element("div", {});
    const head = element("div", { class: "lw-report-head" }, this.status, this.copy);
    const attributes = { class: "lw-report", role: "region", "aria-label": say("report"), tabindex: "0" };
    this.root = element("div", attributes, head, this.body);
    keepInside(this.root);
    this.show([], "");
  }

  // Several forms come from a node that ran over a list.
  show(forms, text) {
    if (text === this.text) return; // what is unfolded or selected stays so
    this.text = text;
    const [first] = forms;
    this.copy.hidden = !first;
    this.status.replaceChildren(...(first ? headline(first) : [say("reportEmpty")]));
    this.status.classList.toggle("lw-dim", !first);
    const rest = forms.flatMap((form, index) => [
      ...(index ? [element("h3", { class: "lw-headline" }, ...headline(form))] : []),
      ...content(form),
    ]);
    this.body.replaceChildren(...rest);
    this.root.scrollTop = 0;
  }

  async onCopy() {
    const { copy } = this;
    copy.textContent = await copyText(this.text).then(
      () => say("reportCopied"),
      () => say("reportNotAllowed"),
    );
    setTimeout(() => (copy.textContent = say("copy")), COPIED_FOR);
  }
}

function headline(form) {
  const { length } = form.sections.filter((section) => !section.level || form.headline);
  const counted = say(length === 1 ? "reportLora" : "reportLoras", { count: length });
  return [mark(form.level), form.headline || counted];
}

function* content({ facts, sections, notes, fix }) {
  if (fix) yield element("p", { class: "lw-fix" }, element("b", {}, say("reportFix")), ` ${fix}`);
  yield* listed(facts);
  let above; // of one LoRA, what it is and how it fits the model stand under one title
  for (const section of sections) {
    yield one(section, above && !above.level && above.title === section.title);
    above = section;
  }
  yield* told(notes);
}

function one({ title, summary, level, facts, unused, notes, bars }, isTitled) {
  const head = element(
    "h4",
    {},
    level ? mark(level) : null,
    isTitled ? null : `${title} `,
    element("span", { class: "lw-dim" }, summary),
  );
  return element(
    "section",
    {},
    head,
    ...listed(facts),
    ...unused.map(folded),
    ...told(notes),
    bars ? barChart(title, bars) : null,
  );
}

function mark(level) {
  const [sign, label] = MARKS[level];
  return element("span", { class: "lw-mark", "data-level": level, role: "img", "aria-label": label() }, sign);
}

function* listed(facts) {
  if (!facts.length) return;
  const rows = facts.flatMap(([name, value]) =>
    name
      ? [element("dt", {}, name), element("dd", {}, value)]
      : [element("dd", { class: "lw-alone" }, value)],
  );
  yield element("dl", { class: "lw-facts" }, ...rows);
}

function folded({ count, verdict, reason, keys }) {
  const summary = say(count === 1 ? "reportTensor" : "reportTensors", { count, verdict, reason });
  const left = count - keys.length;
  const more = left > 0 ? [element("li", {}, say("reportMore", { count: left }))] : [];
  return element(
    "details",
    {},
    element("summary", {}, summary),
    element("ul", { class: "lw-keys" }, ...keys.map((key) => element("li", {}, key)), ...more),
  );
}

function* told(notes) {
  for (const note of notes) yield element("p", { class: "lw-note" }, `${say("reportNote")} ${note}`);
}
