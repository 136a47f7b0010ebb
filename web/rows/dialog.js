// A modal dialog above the canvas. It keeps its keys to itself: the canvas takes those of the page.
import { keepKeys } from "../panel.js";
import { element } from "./element.js";

// Gives the open dialog; `onclose()` is called once, however it is closed.
export function openDialog(label, onclose, ...children) {
  const dialog = element("dialog", { class: "lw-dialog", "aria-label": label }, ...children);
  keepKeys(dialog);
  dialog.addEventListener("pointerdown", (event) => {
    if (event.target === dialog) dialog.close(); // its backdrop
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    onclose();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
