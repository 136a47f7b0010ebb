// The hash of a file, whole and as model sites write it, to be copied.
import { copyText } from "../clipboard.js";
import { say } from "../messages.js";
import { element } from "./element.js";

const SHORT = 10; // digits of sha256 in Civitai's AutoV2

// `ask()` gives a promise of `{sha256}`: a large file takes seconds the first time.
export function fileHash(ask) {
  const body = element("div", { class: "lw-hash" }, say("hashReading"));
  ask().then(
    ({ sha256 }) => {
      const short = sha256.slice(0, SHORT).toUpperCase();
      body.replaceChildren(hash("sha256", sha256), hash("AutoV2", short));
    },
    (error) => (body.textContent = error.message),
  );
  return body;
}

function hash(name, value) {
  const told = element("span", { role: "status" });
  const copy = async () => {
    try {
      await copyText(value);
      told.textContent = ` ${say("hashCopied")}`;
    } catch {
      told.textContent = ` ${say("noClipboard")}`;
    }
  };
  const attributes = { type: "button", "aria-label": say("hashCopy", { name }), onclick: copy };
  const button = element("button", attributes, say("copy"));
  const label = element("span", { class: "lw-dim" }, `${name} `);
  return element("div", {}, label, element("code", {}, value), " ", button, told);
}
