// The pack's style sheet, beside this file.
import { element } from "./rows/element.js";

export function addStyles() {
  const href = new URL("./styles.css", import.meta.url).href;
  document.head.append(element("link", { rel: "stylesheet", href }));
}
