// Which files a search shows, best first.

// Every word of the query must stand in the name; a match in the file's own name ranks before one in
// its folder, a match at a word's start before one inside. `names` of equal rank keep their order.
export function search(names, query, limit = 200) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return names.slice(0, limit);
  const ranked = [];
  for (const name of names) {
    const rank = rankOf(name.toLowerCase().replaceAll("\\", "/"), words);
    if (rank !== null) ranked.push([rank, name]);
  }
  ranked.sort(([a], [b]) => a - b);
  return ranked.slice(0, limit).map(([, name]) => name);
}

function rankOf(name, words) {
  const own = name.slice(name.lastIndexOf("/") + 1);
  let rank = 0;
  for (const word of words) {
    const at = own.indexOf(word);
    if (at >= 0) rank += at === 0 || /[^a-z0-9]/.test(own[at - 1]) ? 0 : 1;
    else if (name.includes(word)) rank += 2;
    else return null;
  }
  return rank;
}

// The folders of a list of names, shallow first.
export function foldersOf(names) {
  const folders = new Set();
  for (const name of names) {
    const parts = name.replaceAll("\\", "/").split("/").slice(0, -1);
    parts.forEach((_, depth) => folders.add(parts.slice(0, depth + 1).join("/")));
  }
  return [...folders].sort();
}
