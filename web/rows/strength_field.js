// A strength that is typed, dragged sideways, turned with the wheel, or stepped with the arrows.
import { element } from "./element.js";
import { readStrength, showStrength } from "./rows.js";

const STEP = 0.05;
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
    title: `${label}: type, drag sideways, or use the arrows and the wheel (Shift: fine)`,
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
    set(readStrength(current + steps * (event.shiftKey ? FINE_STEP : STEP)));

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
    const step = event.shiftKey ? FINE_STEP : STEP;
    set(readStrength(start.value + Math.round(distance / PIXELS_A_STEP) * step));
  });
  input.addEventListener("pointerup", () => {
    if (start?.moved) {
      input.blur();
      onfinish();
    }
    start = null;
  });
  input.addEventListener("pointercancel", () => (start = null));
}
