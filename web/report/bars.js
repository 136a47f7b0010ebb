// A bar chart as inline SVG in the theme's colours; its values stand in a table that unfolds.
import { say } from "../messages.js";
import { element } from "../rows/element.js";
import { drawn, short } from "../svg.js";

const [STEP, GAP] = [16, 4];
const [LEFT, TOP, FLOOR] = [40, 8, 92];
const [LABEL, LETTER] = [36, 5.5]; // the labels stand upright below the floor; at least so high
const LEAST_BARS = 24; // so that few bars are not wide ones

// Args: `values` as [[label, value]], `highest` of all charts that are compared.
export function barChart(title, { values, highest, unit }) {
  const width = LEFT + STEP * Math.max(values.length, LEAST_BARS);
  const letters = Math.max(0, ...values.map(([label]) => label.length));
  const height = FLOOR + Math.max(LABEL, 4 + Math.ceil(LETTER * letters));
  const top = (value) => FLOOR - (highest ? value / highest : 0) * (FLOOR - TOP);
  const lines = [0.5, 1].flatMap((share) => [
    drawn("path", { class: "lw-grid", d: `M${LEFT} ${top(share * highest)}H${width}` }),
    number(share * highest, top(share * highest)),
  ]);
  const bars = values.flatMap(([label, value], index) => {
    const x = LEFT + index * STEP;
    const size = { x: x + GAP / 2, y: top(value), width: STEP - GAP, height: FLOOR - top(value) };
    const at = `translate(${x + STEP / 2 + 3} ${FLOOR + 4}) rotate(-90)`;
    return [
      drawn("rect", { class: "lw-bar", ...size }, drawn("title", {}, `${label}: ${short(value)}`)),
      drawn("text", { transform: at, "text-anchor": "end" }, label),
    ];
  });
  const [name, told] = [`${title}: ${unit}`, inWords(values)];
  const svg = drawn(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", class: "lw-chart", "aria-label": `${name}. ${told}` },
    drawn("title", {}, name),
    drawn("desc", {}, told),
    ...lines,
    drawn("path", { class: "lw-axis", d: `M${LEFT} ${TOP}V${FLOOR}H${width}` }),
    ...bars,
  );
  return element("figure", {}, element("figcaption", { class: "lw-dim" }, unit), svg, table(values));
}

function inWords(values) {
  const [label, value] = values.reduce((most, entry) => (entry[1] > most[1] ? entry : most));
  return say("chartTold", { count: values.length, value: short(value), label });
}

function number(value, y) {
  return drawn("text", { x: LEFT - 4, y: y + 3, "text-anchor": "end" }, short(value));
}

function table(values) {
  const rows = values.map(([label, value]) =>
    element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, short(value))),
  );
  return element("details", {}, element("summary", {}, say("chartValues")), element("table", {}, ...rows));
}
