// Factors by block as a strip of bars.
import { drawn } from "../svg.js";
import { say } from "../messages.js";
import { inRanges, shown } from "./weighting_rules.js";

const [BAR, GAP, HEIGHT] = [3, 1, 16]; // units of the picture

// Args:
//   blocks: `[{name, least, mean, most}]`, in order.
export function sparkline(label, blocks) {
  const width = blocks.length * (BAR + GAP);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none" });
  const text = `${label}: ${factorsInWords(blocks)}`;
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", text);
  svg.setAttribute("class", "lw-spark");
  const title = drawn("title", {});
  title.textContent = text;
  const ground = drawn("rect", { x: 0, y: HEIGHT - 0.5, width, height: 0.5 });
  const highest = Math.max(1, ...blocks.map(({ mean }) => Math.abs(mean)));
  const bars = blocks.map(({ mean }, index) => {
    const height = (Math.abs(mean) / highest) * HEIGHT;
    const place = { x: index * (BAR + GAP), y: HEIGHT - height, width: BAR, height };
    return drawn("rect", { ...place, class: mean < 0 ? "lw-negative" : "" });
  });
  svg.append(title, ground, ...bars);
  return svg;
}

// Such as "BASE 1, IN00-03 1, IN04-08 0 to 0.5".
export function factorsInWords(blocks) {
  const told = blocks.map((block) => ({ name: block.name, factor: factorInWords(block) }));
  return inRanges(told)
    .map(({ select, factor }) => `${select} ${factor}`)
    .join(", ");
}

export function factorInWords({ least, most }) {
  if (least === most) return shown(least);
  return say("weightingRange", { least: shown(least), most: shown(most) });
}
