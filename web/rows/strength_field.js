// A strength that is typed, dragged sideways, turned with the wheel, or stepped with the arrows.
import { app } from "../comfy.js";
import { say } from "../messages.js";
import { settingOf } from "../settings.js";
import { element } from "./element.js";
import { readStrength, showStrength } from "./rows.js";

const FINE_STEP = 0.01; // with Shift
const DRAG_STARTS = 3; // pixels
const PIXELS_A_STEP = 4;

// `onchange(value)` is called for each new value, `onfinish()` once a gesture has ended.
export function strengthField(label, value, onchange, onfinish) {
  const input = element("input", {
    class: "lw-strength",
    type: "text",
    inputmode: "decimal",
    role: "spinbutton",
    title: say("strengthHelp", { name: label }),
    "aria-label": label,
  });
  let current = value;
  const show = () => {
    input.value = showStrength(current);
    input.setAttribute("aria-valuenow", current);
  };
  const set = (next) => {
    if (next !== null && next !== current) onchange((current = next));
    show();
  };
  const stepped = (steps, event) =>
    set(readStrength(current + steps * stepOf(event)));

  input.addEventListener("change", () => {
    set(readStrength(input.value));
    onfinish();
  });
  input.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (steps && !event.altKey) {
      event.preventDefault();
      stepped(steps, event);
      onfinish();
    } else if (event.key === "Enter") input.select(); // the browser tells of the change
    else if (event.key === "Escape") {
      show();
      input.select();
    }
  });
  input.addEventListener("wheel", (event) => {
    if (document.activeElement !== input) return; // the wheel zooms the canvas
    event.preventDefault();
    event.stopPropagation();
    stepped(-Math.sign(event.deltaY), event);
    onfinish();
  });
  dragged(input, () => current, set, onfinish);
  show();
  return input;
}

function isBeingTyped(input) {
  const isWhole = input.selectionStart === 0 && input.selectionEnd === input.value.length;
  return document.activeElement === input && !isWhole;
}

function stepOf({ shiftKey }) {
  return shiftKey ? FINE_STEP : settingOf(app, "Rows.StrengthStep");
}

function dragged(input, value, set, onfinish) {
  let start = null;
  input.addEventListener("pointerdown", (event) => {
    if (event.button === 0 && !isBeingTyped(input))
      start = { x: event.clientX, value: value(), moved: false };
  });
  input.addEventListener("pointermove", (event) => {
    if (!start) return;
    const distance = event.clientX - start.x;
    if (!start.moved && Math.abs(distance) < DRAG_STARTS) return;
    if (!start.moved) input.setPointerCapture(event.pointerId);
    start.moved = true;
    set(readStrength(start.value + Math.round(distance / PIXELS_A_STEP) * stepOf(event)));
  });
  const end = () => {
    if (start?.moved) {
      input.blur();
      onfinish();
    }
    start = null;
  };
  input.addEventListener("pointerup", end);
  input.addEventListener("pointercancel", end); // what was dragged so far stays
}
