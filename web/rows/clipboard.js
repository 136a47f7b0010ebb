// Rows on the clipboard.
import { parseRows, writeRows, writeTags } from "./rows.js";

const JSON_TYPE = "application/json";

// Tags for a prompt or a chat, and as JSON everything, for another of our nodes; a text that is
// selected, such as a verdict, is copied as it is.
export function copyRows(event, rows) {
  if (isText(event.target) || !rows.length || isTextSelected()) return;
  event.preventDefault();
  event.clipboardData.setData("text/plain", writeTags(rows));
  event.clipboardData.setData(JSON_TYPE, writeRows(rows));
}

// The rows of a paste in either form; none for other text, which is left alone.
export function pastedRows(event) {
  if (isText(event.target)) return [];
  const text = event.clipboardData.getData(JSON_TYPE) || event.clipboardData.getData("text/plain");
  try {
    const rows = parseRows(text);
    if (rows.length) event.preventDefault();
    return rows;
  } catch {
    return []; // somebody's other text
  }
}

// In the page: what is selected in a field that has no focus any more counts as collapsed.
function isTextSelected() {
  return !document.getSelection().isCollapsed;
}

function isText({ tagName, type }) {
  return tagName === "TEXTAREA" || (tagName === "INPUT" && type === "text");
}
