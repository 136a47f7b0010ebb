// A word at the end of a prompt.

export function withWord(text, word) {
  return [text.trim().replace(/,$/, ""), word].filter(Boolean).join(", ");
}
