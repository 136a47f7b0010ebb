// What a file is: picture, facts, the words it was trained with, and its metadata.
import { say } from "../messages.js";
import { openDialog } from "./dialog.js";
import { element } from "./element.js";
import { fileHash } from "./file_hash.js";
import { normsChart } from "./norms_chart.js";

const MEGABYTE = 1e6;

// Args:
//   row: the row whose file is shown.
//   host.facts(row): a promise of the facts of its file.
//   host.pin(row): a promise of `{sha256}` of its file.
//   host.norms(row): a promise of `{base, norms: [{block, norm}]}`.
//   host.preview(name): the address of its picture.
//   host.targets(): where a word can go, as `[{label, isChosen, take(word)}]`.
//   host.relink(): choose another file for the row, wherever it is used.
// Gives a promise that is kept once the dialog is closed.
export function showDetails(row, host) {
  return new Promise((resolve) => {
    const body = element("div", { class: "lw-details" }, say("detailsReading"));
    const close = element("button", { type: "button", onclick: () => dialog.close() }, say("close"));
    const replace = element(
      "button",
      {
        type: "button",
        onclick: () => {
          dialog.close();
          host.relink();
        },
      },
      say("detailsReplace"),
    );
    const buttons = element("div", { class: "lw-searchline lw-end" }, replace, close);
    const dialog = openDialog(row.name, resolve, body, buttons);
    host.facts(row).then(
      (facts) => body.replaceChildren(...content(row, facts, host)),
      (error) => body.replaceChildren(element("h2", {}, row.name), told(error)),
    );
    close.focus();
  });
}

function* content(row, facts, host) {
  yield element("h2", {}, facts.title || facts.name);
  if (facts.preview)
    yield element("img", { class: "lw-picture", alt: "", src: host.preview(facts.name) });
  yield table(Object.entries(inWords(facts)));
  yield fileHash(() => host.pin(row));
  if (facts.words.length) yield* words(facts.words, host);
  if (facts.notes) yield element("pre", { class: "lw-notes" }, facts.notes);
  yield normsChart(() => host.norms(row), told);
  const metadata = Object.entries(facts.metadata);
  if (metadata.length) {
    const summary = element("summary", {}, say("detailsMetadata", { count: metadata.length }));
    yield element("details", {}, summary, table(metadata));
  }
}

function inWords({ name, size, kinds, ranks, formats, bases, has_text_encoder, problem }) {
  const counted = Object.entries(kinds).map(([kind, count]) => `${count} ${kind}`);
  const [best] = bases;
  const known = {
    [say("detailsFile")]: name,
    [say("detailsSize")]: `${(size / MEGABYTE).toFixed(1)} MB`,
    [say("detailsBase")]: best ? fits(best) : say("detailsBaseUnknown"),
    [say("detailsModules")]: counted.join(", "),
    [say("detailsRank")]: ranks.join(", "),
    [say("detailsNames")]: formats.join(", "),
    [say("detailsTextEncoder")]: say(has_text_encoder ? "detailsYes" : "detailsNoPart"),
    [say("detailsProblem")]: problem,
  };
  return Object.fromEntries(Object.entries(known).filter(([, value]) => value));
}

function fits({ label, used, of }) {
  return say("detailsBaseFits", { base: label, used, all: of });
}

function* words(list, host) {
  const status = element("p", { class: "lw-told", role: "status" });
  const targets = host.targets();
  const options = targets.map(({ label, isChosen }, index) =>
    element("option", { value: index, selected: isChosen }, label),
  );
  const target = element("select", { class: "lw-folder", "aria-label": say("wordsGoTo") }, ...options);
  const use = async (word) => {
    const { label, take } = targets[target.value];
    try {
      await take(word);
      status.textContent = say("wordsAdded", { target: label, word });
    } catch {
      status.textContent = say("wordsNotCopied", { word });
    }
  };
  const buttons = list.map(({ word, count }) =>
    element(
      "button",
      { type: "button", class: "lw-word", onclick: () => use(word) },
      word,
      count ? element("span", { class: "lw-dim" }, ` ${count}`) : null,
    ),
  );
  yield element("h3", {}, say("wordsTitle"));
  yield element("label", { class: "lw-dim" }, `${say("wordsHelp")} `, target);
  yield element("div", { class: "lw-words" }, ...buttons);
  yield status;
}

function table(entries) {
  const rows = entries.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, String(value))),
  );
  return element("table", {}, ...rows);
}

function told(error) {
  const facts = Object.entries(error.facts ?? {});
  return element("div", { role: "alert" }, error.message, facts.length ? table(facts) : null);
}
