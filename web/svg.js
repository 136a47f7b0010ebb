// SVG elements in one call; as web/rows/element.js for HTML.

export function drawn(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function short(value) {
  return String(Number(value.toPrecision(4)));
}
