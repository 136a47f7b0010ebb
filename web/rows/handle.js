// The handle that moves a row: by drag of the pointer, or by Alt with the arrows.
import { say } from "../messages.js";
import { iconButton } from "./element.js";

// Args:
//   list.move(step): by keyboard, up or down by one.
//   list.showDrop(clientY): while it is dragged; null once the drag is over.
//   list.drop(clientY): where it was let go.
export function reorderHandle(name, list) {
  const button = iconButton("pi-bars", say("rowReorder", { name }), null, {
    class: "lw-icon lw-handle",
    "data-field": "handle",
  });
  button.addEventListener("keydown", (event) => {
    const step = event.altKey ? { ArrowUp: -1, ArrowDown: 1 }[event.key] : 0;
    if (!step) return;
    event.preventDefault();
    list.move(step);
  });
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    button.setPointerCapture(event.pointerId);
    const end = () => {
      button.onpointermove = button.onpointerup = button.onpointercancel = null;
      list.showDrop(null);
    };
    button.onpointermove = ({ clientY }) => list.showDrop(clientY);
    button.onpointercancel = end;
    button.onpointerup = ({ clientY }) => {
      end();
      list.drop(clientY);
    };
  });
  return button;
}
