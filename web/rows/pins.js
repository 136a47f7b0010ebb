// Size and hash of files in the rows that name them, by which a moved or renamed file is found again.
import { readRows, writeRows } from "./rows.js";

// A row that has a hash keeps it; the same list where no row is meant.
export function withPin(rows, name, { size, sha256 }) {
  const isMeant = (row) => row.name === name && !row.sha256;
  if (!rows.some(isMeant)) return rows;
  return rows.map((row) => (isMeant(row) ? { ...row, size, sha256 } : row));
}

// A saved node with that pin in its rows, its first value; the same object where no row is meant.
export function pinnedNode(node, name, pin) {
  const text = pinnedText(node.widgets_values?.[0], name, pin);
  if (text === null) return node;
  const named = node.widgets_values_named; // of newer frontends
  return {
    ...node,
    widgets_values: [text, ...node.widgets_values.slice(1)],
    ...(named ? { widgets_values_named: { ...named, rows: text } } : {}),
  };
}

function pinnedText(text, name, pin) {
  try {
    const { rows, others } = readRows(text);
    const pinned = withPin(rows, name, pin);
    return pinned === rows ? null : writeRows(pinned, others);
  } catch {
    return null; // no rows
  }
}
