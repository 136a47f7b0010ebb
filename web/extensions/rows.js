// The row editor on Apply LoRAs and LoRA Stack, in place of the text box of their input `rows`.
import { allNodes } from "../all_nodes.js";
import { copyText } from "../clipboard.js";
import { api } from "../comfy.js";
import { keepShown } from "../keep_shown.js";
import { say } from "../messages.js";
import { pickFiles } from "../pick_files.js";
import { pinAdded } from "../pin_added.js";
import { replaceFiles } from "../replace_files.js";
import { ROW_NODES, ROWS_INPUT } from "../row_lists.js";
import { Answers } from "../rows/answers.js";
import { showDetails } from "../rows/details.js";
import { RowEditor } from "../rows/editor.js";
import { baseName } from "../rows/file_name.js";
import { keyOf } from "../rows/relink.js";
import { newRow } from "../rows/rows.js";
import { checkpointOf } from "../rows/upstream.js";
import { withWord } from "../rows/words.js";
import { placeOf, withNode } from "../saved_node.js";
import { ask, askInTurn, previewAddress } from "../server.js";
import { settingOf } from "../settings.js";
import { amendPresent, openWorkflow, rememberForUndo } from "../undo.js";
import { scrollOrZoom } from "../wheel.js";

const WIDGET = "LORA_WORKBENCH_ROWS";
const [LEAST, MOST] = [110, 420]; // height of the list in the canvas's pixels
const WIDTH = 440;
const LAID_OUT = 100; // milliseconds: Nodes 2.0 sets the height some frames later
const editors = new WeakMap(); // by node
const focus = { last: null }; // `{id, focused}` of the node and field, or null when it is elsewhere
const verdicts = new Answers((query) => askInTurn("verdict", query));
const blocks = new Answers((query) => askInTurn("blocks", query));

export const rows = {
  name: "loraWorkbench.rows",

  // Only here, so that without this file the input stays a text box.
  beforeRegisterNodeDef(nodeType, { name, input }) {
    if (ROW_NODES.includes(name)) input.required[ROWS_INPUT][1].widgetType = WIDGET;
  },

  // Another checkpoint in a loader upstream is such a change; verdicts that are known cost nothing.
  setup(app) {
    api.addEventListener("graphChanged", () => refreshVerdicts(app));
    followFocus(app);
  },

  // An undo builds the nodes anew; the focus goes to where it was before their elements went.
  afterConfigureGraph(missing, app) {
    const { id, focused } = focus.last ?? {};
    const found = [...allNodes(app)].find(({ node }) => node.id === id && editors.has(node));
    if (found) focusOnceShown(editors.get(found.node), focused);
  },

  // The R key: files were added, taken away or replaced.
  refreshComboInNodes(definitions, app) {
    recheck(app);
  },

  getCustomWidgets(app) {
    return { [WIDGET]: (node, name, inputData) => ({ widget: rowsWidget(app, node, name, inputData) }) };
  },
};

export function editorOf(node) {
  return editors.get(node);
}

function followFocus(app) {
  document.addEventListener("focusin", ({ target }) => {
    const isOurs = target.closest(".lw-rows");
    const found = isOurs && [...allNodes(app)].find(({ node }) => editors.get(node)?.focused);
    focus.last = found ? { id: found.node.id, focused: editors.get(found.node).focused } : null;
  });
  const leave = ({ target }) => {
    if (!target.closest?.(".lw-rows")) focus.last = null; // the canvas takes no focus
  };
  document.addEventListener("pointerdown", leave, { capture: true });
}

// Every file is read again, also where nothing seems to have changed.
export function recheck(app) {
  verdicts.forget();
  blocks.forget();
  refreshVerdicts(app);
}

function refreshVerdicts(app) {
  for (const { node } of allNodes(app)) editors.get(node)?.refreshVerdicts();
}

function rowsWidget(app, node, name, [, { default: initial }]) {
  const editor = new RowEditor({
    pick: () => pickFiles(app),
    newRow: (lora) => addedRow(app, lora),
    details: (view) => showDetails(view.row, detailsHost(app, view)),
    pin: (names) => pinAdded(app, node, names, (each) => editors.get(each)?.adding),
    verdict: (row) => verdicts.of(row, checkpointOf(node)),
    blocks: (row) => blocks.of(row, { ...checkpointOf(node), weighting: row.weighting }),
    onchange: () => fit(app, node, widget),
    onfinish: () => rememberForUndo(app),
    onresize: () => fit(app, node, widget),
  });
  const height = () => Math.min(Math.max(editor.height, LEAST), MOST);
  const widget = node.addDOMWidget(name, WIDGET, editor.root, {
    getValue: () => editor.value,
    setValue: (text) => (editor.value = text),
    getMinHeight: height,
  });
  editors.set(node, editor);
  scrollOrZoom(editor.root, app);
  keepShown(node, name, editor.root);
  widget.value = initial;
  const { onAdded, onRemoved, onConnectionsChange } = node;
  node.onAdded = function () {
    onAdded?.apply(this, arguments);
    editor.render();
  };
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    editor.release();
  };
  node.onConnectionsChange = function () {
    onConnectionsChange?.apply(this, arguments);
    setTimeout(() => editor.refreshVerdicts()); // links are not complete in the midst of loading
  };
  node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
  return widget;
}

// Nodes 2.0 puts the element into the page some frames later, and may do so twice.
function focusOnceShown(editor, focused, frames = 20) {
  const isLost = document.activeElement === document.body;
  if (isLost && editor.root.isConnected) editor.focus(...focused);
  if (frames) requestAnimationFrame(() => focusOnceShown(editor, focused, frames - 1));
}

function detailsHost(app, view) {
  return {
    facts: ({ name, sha256, size }) => ask("lora", { name, sha256, size }),
    pin: ({ name, sha256, size }) => ask("pin", { name, sha256, size }),
    norms: ({ name, sha256, size }) => ask("norms", { name, sha256, size }),
    preview: previewAddress,
    targets: () => wordTargets(app),
    relink: () => relink(app, view.row),
  };
}

function addedRow(app, name) {
  const model = settingOf(app, "Rows.NewStrength");
  return newRow(name, settingOf(app, "Rows.SeparateClip") ? { model, clip: model } : { model });
}

// Every row of the workflow that means this file gets the other one.
async function relink(app, row) {
  const workflow = openWorkflow(app);
  const [other] = await pickFiles(app, baseName(row.name));
  if (other) await replaceFiles(app, new Map([[{ key: keyOf(row) }, other]]), workflow);
}

// Where a word can go: to the end of a text on the shown graph, or to the clipboard.
function wordTargets(app) {
  const texts = app.canvas.graph.nodes.flatMap((node) =>
    (node.widgets ?? [])
      .filter(({ type }) => type === "customtext")
      .map((widget) => ({
        label: `${node.title} (${node.id}): ${widget.name}`,
        isChosen: Boolean(app.canvas.selected_nodes?.[node.id]),
        take: (word) => {
          widget.value = withWord(widget.value, word);
          rememberForUndo(app);
        },
      })),
  );
  return [{ label: say("clipboard"), take: copyText }, ...texts];
}

function fit(app, node, widget) {
  requestAnimationFrame(() => {
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.setDirtyCanvas(true, true);
    widget.callback?.(widget.value);
    setTimeout(() => noteSize(app, node), LAID_OUT);
  });
}

// The height that a list needs is no step of undo.
function noteSize(app, node) {
  if (node.graph?.getNodeById(node.id) !== node) return; // it went meanwhile
  const size = [...node.size];
  const sized = (saved) => (size.every((each, at) => each === saved.size[at]) ? saved : { ...saved, size });
  amendPresent(app, (state) => withNode(state, placeOf(app, node), sized));
}
