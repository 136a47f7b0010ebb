// What a panel says in words.
import { say } from "../messages.js";
import { short } from "../svg.js";

const ENDS = {
  running: () => say("liveRunning"),
  done: () => say("liveDone"),
  kept: () => say("liveKept"),
  stopped: () => say("liveStopped"),
  failed: () => say("liveFailed"),
  lost: () => say("liveLost"),
};

export function stateText({ state, keep }) {
  return state === "running" && keep ? say("liveWillKeep") : ENDS[state]();
}

// `seconds` have passed from step `first` to `step`.
export function progressText({ step, total, text, first, seconds }, isRunning) {
  if (step === undefined) return "";
  const parts = [say("liveStep", { step, total })];
  const left = isRunning && timeLeft({ step, total, first, seconds });
  if (left) parts.push(left);
  if (text) parts.push(text);
  return parts.join(" \u00b7 ");
}

export function timeLeft({ step, total, first, seconds }) {
  if (step <= first || step >= total) return "";
  return say("liveLeft", { time: duration(((total - step) * seconds) / (step - first)) });
}

export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return say("liveSeconds", { seconds: whole });
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return say("liveMinutes", { minutes });
  return say("liveHours", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}

export function curveText(name, points) {
  const [from, to] = [points[0], points.at(-1)];
  const values = points.map(([, y]) => y);
  return say("liveCurve", {
    name,
    first: short(from[1]),
    start: short(from[0]),
    last: short(to[1]),
    end: short(to[0]),
    lowest: short(Math.min(...values)),
    highest: short(Math.max(...values)),
  });
}
