// What a workflow's files are called here, and which are missing; beside the canvas, not over it.
import { say } from "../messages.js";
import { keepKeys } from "../panel.js";
import { element, iconButton } from "./element.js";

const SHOWN_OF_HASH = 12;

// Args:
//   files: `[{name, sha256, labels, found, near, problem}]`: `found` is the listed name of the
//     file, or null.
//   host.pick(name): a promise of a file that the user chooses in place of one, or null.
//   host.use(chosen): put files in place, as a Map from entries of `files` to names.
//   host.close(): called when the user puts the panel away.
export function relinkPanel(files, host) {
  const chosen = new Map(files.filter(({ found }) => found).map((file) => [file, file.found]));
  const use = element("button", { type: "button", onclick: () => host.use(chosen) });
  const show = () => {
    use.textContent = say(chosen.size === 1 ? "relinkUse" : "relinkUseSeveral", { count: chosen.size });
    use.disabled = !chosen.size;
  };
  const choose = (file, name) => {
    if (name) chosen.set(file, name);
    else chosen.delete(file);
    show();
  };
  show();
  const missing = files.filter(({ found }) => !found).length;
  const panel = element(
    "section",
    { class: "lw-dialog lw-relink", "aria-label": say("relinkTitle") },
    element(
      "div",
      { class: "lw-searchline" },
      element("strong", { class: "lw-told", role: "status" }, headline(missing, chosen.size)),
      iconButton("pi-times", say("relinkPutAway"), host.close),
    ),
    element("ul", { class: "lw-list lw-details" }, ...files.map((file) => item(file, host, choose))),
    element("div", { class: "lw-searchline lw-end" }, use),
  );
  keepKeys(panel);
  return panel;
}

function headline(missing, found) {
  const parts = [
    missing && say(missing > 1 ? "relinkMissing" : "relinkOneMissing", { count: missing }),
    found && say(found > 1 ? "relinkRenamed" : "relinkOneRenamed", { count: found }),
  ];
  return parts.filter(Boolean).join(", ");
}

function item(file, host, choose) {
  const { name, sha256, labels, found, problem } = file;
  const hash = sha256 ? `sha256 ${sha256.slice(0, SHOWN_OF_HASH)}...` : say("relinkNoHash");
  return element(
    "li",
    { class: "lw-wanted" },
    element("div", { class: "lw-wanted-name", "data-level": found ? "partial" : "wrong" }, name),
    element("div", { class: "lw-dim lw-under", title: sha256 ?? "" }, `${labels.join(", ")}; ${hash}`),
    found || !problem ? null : element("div", { class: "lw-dim lw-under" }, problem),
    found
      ? element("div", { class: "lw-under" }, say("relinkIs", { name: found }))
      : choice(file, host, choose),
  );
}

function choice(file, host, choose) {
  const option = (name) => element("option", { value: name }, name);
  const select = element(
    "select",
    {
      class: "lw-folder",
      "aria-label": say("relinkInPlace", { name: file.name }),
      onchange: () => choose(file, select.value),
    },
    element("option", { value: "" }, say("relinkLeave")),
    ...file.near.map(option),
  );
  const other = async () => {
    const name = await host.pick(file.name);
    if (!name) return;
    if (![...select.options].some(({ value }) => value === name)) select.append(option(name));
    select.value = name;
    choose(file, name);
  };
  const label = say("relinkChooseFor", { name: file.name });
  return element(
    "div",
    { class: "lw-searchline lw-under" },
    select,
    element("button", { type: "button", "aria-label": label, onclick: other }, say("relinkChoose")),
  );
}
