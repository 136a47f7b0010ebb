// Where the lines of a chart go, in a box of WIDTH by HEIGHT.

export const WIDTH = 400;
export const HEIGHT = 170;
const [LEFT, RIGHT, TOP, BOTTOM] = [46, 8, 8, 20]; // margins; the numbers stand in two of them
const STEPS = [1, 2, 5, 10];

// Args: series, as {name: [[x, y], ...]}, none of them empty.
export function layOut(series) {
  const points = Object.values(series).flat();
  const [x0, x1] = extent(points.map(([x]) => x));
  const [y0, y1] = extent(points.map(([, y]) => y));
  const across = scale(x0, x1, LEFT, WIDTH - RIGHT);
  const up = scale(y0, y1, HEIGHT - BOTTOM, TOP);
  const lines = Object.entries(series).map(([name, line]) => ({
    name,
    path: line.map(([x, y], at) => `${at ? "L" : "M"}${across(x)} ${up(y)}`).join("") + dot(line),
  }));
  return {
    lines,
    area: { left: LEFT, right: WIDTH - RIGHT, top: TOP, bottom: HEIGHT - BOTTOM },
    across: ticks(x0, x1, 5).map((value) => ({ value, at: across(value) })),
    up: ticks(y0, y1, 4).map((value) => ({ value, at: up(value) })),
  };
}

// Round numbers within a range, about `count` of them.
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = STEPS.find((factor) => factor * power >= rough * (1 - 1e-9)) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++)
    found.push(Number((at * step).toPrecision(12)));
  return found;
}

// A range of one value gets room on both sides.
function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const room = low === high ? Math.abs(low) / 2 || 1 : 0;
  return [low - room, high + room];
}

function scale(low, high, from, to) {
  return (value) => Number((from + ((value - low) / (high - low)) * (to - from)).toFixed(1));
}

function dot({ length }) {
  return length === 1 ? "h0" : ""; // round ends make a point of it
}
