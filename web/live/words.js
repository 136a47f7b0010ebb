// What a panel says in words.
import { short } from "../svg.js";

const ENDS = {
  running: "Running",
  done: "Done",
  kept: "Stopped; what there was is kept",
  stopped: "Stopped",
  failed: "Failed",
  lost: "The server does not know this run any more",
};

export function stateText({ state, keep }) {
  return state === "running" && keep ? "Will stop and keep what there is" : ENDS[state];
}

// `seconds` have passed from step `first` to `step`.
export function progressText({ step, total, text, first, seconds }, isRunning) {
  if (step === undefined) return "";
  const parts = [`step ${step} of ${total}`];
  const left = isRunning && timeLeft({ step, total, first, seconds });
  if (left) parts.push(left);
  if (text) parts.push(text);
  return parts.join(" \u00b7 ");
}

export function timeLeft({ step, total, first, seconds }) {
  if (step <= first || step >= total) return "";
  return `${duration(((total - step) * seconds) / (step - first))} left`;
}

export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function curveText(name, points) {
  const [from, to] = [points[0], points.at(-1)];
  const values = points.map(([, y]) => y);
  const ends = `from ${short(from[1])} at ${short(from[0])} to ${short(to[1])} at ${short(to[0])}`;
  return `${name}: ${ends}, lowest ${short(Math.min(...values))}, highest ${short(Math.max(...values))}`;
}
