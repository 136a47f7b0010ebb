// A line chart as inline SVG in the theme's colours; told in words for those who do not see it.
import { HEIGHT, WIDTH, layOut } from "./geometry.js";
import { curveText } from "./words.js";
import { say } from "../messages.js";
import { element } from "../rows/element.js";
import { drawn, short } from "../svg.js";

export class Chart {
  constructor() {
    this.title = drawn("title", {});
    this.desc = drawn("desc", {});
    this.marks = drawn("g", {});
    const shape = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "lw-chart" };
    this.svg = drawn("svg", shape, this.title, this.desc, this.marks);
    this.legend = element("ul", { class: "lw-legend" });
    this.root = element("div", { class: "lw-chart-box" }, this.svg, this.legend);
    this.show({});
  }

  show(series) {
    const names = Object.keys(series);
    this.root.hidden = !names.length;
    if (!names.length) return;
    const { lines, area, across, up } = layOut(series);
    this.title.textContent = say("liveChart", { names: names.join(", ") });
    this.desc.textContent = names.map((name) => curveText(name, series[name])).join(". ");
    this.svg.setAttribute("aria-label", `${this.title.textContent}. ${this.desc.textContent}`);
    this.marks.replaceChildren(
      ...up.flatMap(({ value, at }) => [
        drawn("path", { class: "lw-grid", d: `M${area.left} ${at}H${area.right}` }),
        drawn("text", { x: area.left - 4, y: at + 3, "text-anchor": "end" }, short(value)),
      ]),
      ...across.map(({ value, at }) =>
        drawn("text", { x: at, y: HEIGHT - 6, "text-anchor": "middle" }, short(value)),
      ),
      drawn("path", {
        class: "lw-axis",
        d: `M${area.left} ${area.top}V${area.bottom}H${area.right}`,
      }),
      ...lines.map(({ path }, index) => drawn("path", { class: "lw-curve", "data-n": index, d: path })),
    );
    this.legend.replaceChildren(...names.map((name, index) => legendEntry(name, series[name], index)));
  }
}

function legendEntry(name, points, index) {
  const line = drawn("path", { class: "lw-curve", "data-n": index, d: "M1 4H21" });
  const sample = drawn("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, line);
  return element("li", {}, sample, `${name} ${short(points.at(-1)[1])}`);
}
