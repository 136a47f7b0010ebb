// How much a LoRA changes each block: asked for when it is opened, for the file's factors are read.
import { say } from "../messages.js";
import { element } from "./element.js";

const DIGITS = 3;

// `ask()` gives a promise of `{base, norms: [{block, norm}]}`,
// `told(error)` an element about an error.
export function normsChart(ask, told) {
  const body = element("div", { role: "status" });
  const summary = element("summary", {}, say("normsTitle"));
  const fill = async () => {
    body.textContent = say("normsReading");
    const content = await ask().then(chart, told);
    body.replaceChildren(content);
  };
  const ontoggle = () => details.open && !body.hasChildNodes() && fill();
  const details = element("details", { ontoggle }, summary, body);
  return details;
}

function chart({ base, norms }) {
  const highest = Math.max(...norms.map(({ norm }) => norm));
  const rows = norms.map(({ block, norm }) => {
    const bar = element("div", { class: "lw-norm", "aria-hidden": "true" });
    bar.style.width = `${highest ? (100 * norm) / highest : 0}%`;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, block),
      element("td", { class: "lw-wide" }, bar),
      element("td", { class: "lw-number" }, norm.toPrecision(DIGITS)),
    );
  });
  const caption = say("normsHelp", { base });
  return element("table", {}, element("caption", { class: "lw-dim" }, caption), ...rows);
}
