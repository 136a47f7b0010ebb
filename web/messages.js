// What our scripts say, in the language of the canvas.
import { ENGLISH } from "./english.js";

const known = { language: () => "en", texts: {} };

// The text of a key with `{name}` replaced by the value of that name.
export function say(key, values = {}) {
  const text = known.texts[known.language()]?.[key] ?? ENGLISH[key];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// `texts` are by language, then by key; `language()` says which one is chosen. English needs none.
export function translate(texts, language) {
  Object.assign(known, { texts, language });
}
