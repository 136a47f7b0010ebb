// Curves of bounded length: as in hosts/live_panel.py, of each four points the lowest and the
// highest stay, so that peaks do.

export const MOST_POINTS = 2000;

export function appended(points, more) {
  let all = [...points, ...more];
  while (all.length > MOST_POINTS) all = thinned(all);
  return all;
}

export function thinned(points) {
  const kept = [];
  for (let start = 0; start < points.length; start += 4) {
    const group = points.slice(start, start + 4);
    const values = group.map(([, y]) => y);
    const ends = [values.indexOf(Math.min(...values)), values.indexOf(Math.max(...values))];
    kept.push(...group.filter((_, index) => ends.includes(index)));
  }
  return kept;
}
