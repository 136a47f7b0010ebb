// Which files the rows of a workflow mean, and the rows with other files in their place.
import { parseRows, readRows, writeRows } from "./rows.js";

// What makes two rows mean the same file.
export function keyOf({ name, sha256, size }) {
  return JSON.stringify([name, sha256 ?? null, size ?? null]);
}

// The distinct files of `[{label, text}]`, as `[{key, name, sha256, size, labels}]` in their order;
// text that is no rows has none.
export function wantedFiles(lists) {
  const wanted = new Map();
  for (const { label, text } of lists)
    for (const row of rowsIn(text)) {
      const key = keyOf(row);
      const { name, sha256, size } = row;
      if (!wanted.has(key)) wanted.set(key, { key, name, sha256, size, labels: [] });
      const { labels } = wanted.get(key);
      if (!labels.includes(label)) labels.push(label);
    }
  return [...wanted.values()];
}

// The text with `{name, sha256, size}` of `files` (by key) in the rows that mean them, or null when
// no row does. All else in a row stays.
export function relinked(text, files) {
  if (!rowsIn(text).some((row) => files.has(keyOf(row)))) return null;
  const { rows, others } = readRows(text);
  return writeRows(
    rows.map(({ sha256, size, ...row }) => {
      const file = files.get(keyOf({ name: row.name, sha256, size })) ?? { sha256, size };
      return { ...row, ...file };
    }),
    others,
  );
}

function rowsIn(text) {
  try {
    return parseRows(text);
  } catch {
    return []; // the editor shows the text as it is, with the reason
  }
}
