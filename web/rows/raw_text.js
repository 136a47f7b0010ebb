// Text that cannot be read as rows stays as it is, to be mended by hand.
import { say } from "../messages.js";
import { element } from "./element.js";

export function rawText(text, message, onchange) {
  const box = element("textarea", {
    class: "lw-raw",
    "aria-label": say("rowsAsText"),
    onchange: () => onchange(box.value),
  });
  box.value = text;
  const told = element("p", { class: "lw-verdict", role: "alert" }, message);
  told.dataset.level = "wrong";
  return element("div", {}, told, box);
}
