// Elements in one call: element("button", {class: "x", onclick: f}, "text", child).

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// A small button that shows a letter, or an icon of PrimeIcons, which the frontend brings.
export function iconButton(sign, label, onclick, attributes = {}) {
  const all = { type: "button", class: "lw-icon", title: label, "aria-label": label };
  const shown = sign.startsWith("pi-") ? element("i", { class: `pi ${sign}` }) : sign;
  const made = element("button", { ...all, ...attributes }, shown);
  if (onclick) made.addEventListener("click", onclick);
  return made;
}
