// After a change of a list, what stays the same keeps its elements: focus, selection and time are spared.

// The views of `rows`: a row that is still there keeps its view, and one that was changed in its place
// is shown by the view of before; `make(row)` gives a new one. `view.row` is what it shows.
export function viewsOf(rows, views, make) {
  const known = new Map(views.map((view) => [view.row, view]));
  const still = new Set(rows);
  return rows.map((row, index) => {
    if (known.has(row)) return known.get(row);
    const before = views[index];
    if (before?.row.name !== row.name || still.has(before.row)) return make(row);
    before.show(row);
    return before;
  });
}

// Make `elements` the children of `parent`; those that are in their order are not touched.
export function putInOrder(parent, elements) {
  const wanted = new Set(elements);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let at = parent.firstElementChild;
  for (const each of elements) {
    if (each === at) at = at.nextElementSibling;
    else parent.insertBefore(each, at);
  }
}
