// Text into the clipboard, also on pages that came over plain HTTP from another machine: these have
// no `navigator.clipboard`.
import { say } from "./messages.js";

export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const give = (event) => {
    event.stopImmediatePropagation();
    event.preventDefault();
    event.clipboardData.setData("text/plain", text);
  };
  window.addEventListener("copy", give, { capture: true, once: true });
  const done = document.execCommand("copy");
  window.removeEventListener("copy", give, { capture: true });
  if (!done) throw new Error(say("noClipboard"));
}
