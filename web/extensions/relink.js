// LoRA files that an opened workflow names and this machine lacks, or has under another name.
//
// Rows are changed on the user's word alone, all of them in one step of undo. (A run finds a moved
// or renamed file by its hash all the same.)
import { allNodes } from "../all_nodes.js";
import { app } from "../comfy.js";
import { offered } from "../commands.js";
import { say } from "../messages.js";
import { pickLoras } from "../rows/picker.js";
import { relinked, wantedFiles } from "../rows/relink.js";
import { relinkPanel } from "../rows/relink_panel.js";
import { Turns } from "../rows/turns.js";
import { ask, previewAddress } from "../server.js";
import { rememberForUndo } from "../undo.js";

const NODES = ["LoraWorkbenchApply", "LoraWorkbenchStack"];

export const relink = {
  name: "loraWorkbench.relink",
  ...offered({ FindFiles: () => panel.show({ always: true }) }),

  // Undo and a change of tab come here too: the panel is about what is on the canvas now.
  afterConfigureGraph() {
    panel.show({ always: false });
  },
};

class Panel {
  constructor() {
    this.root = null;
    this.asked = 0;
    this.putAway = new Set(); // what the user has seen, until the page is loaded anew
  }

  async show({ always }) {
    const number = ++this.asked;
    this.root?.remove();
    const wanted = wantedFiles([...rowLists()].map(({ label, widget }) => ({ label, text: widget.value })));
    await idle(); // the canvas is drawn first
    const isLatest = () => number === this.asked;
    const answers = wanted.map((file) => turns.take(() => (isLatest() ? looked(file) : file)));
    const files = (await Promise.all(answers)).filter(({ name, found }) => found !== name);
    if (!isLatest()) return; // another workflow has come meanwhile
    const key = JSON.stringify(files.map((file) => file.key));
    if (always && !files.length) this.tell(say("relinkAllHere"));
    if (!files.length || (!always && this.putAway.has(key))) return;
    const close = () => {
      this.putAway.add(key);
      this.root.remove();
    };
    this.root = relinkPanel(files, {
      pick: async (name) => (await pickLoras(listed(), previewAddress, baseName(name)))[0] ?? null,
      close,
      use: async (chosen) => {
        close();
        await replaceFiles(chosen);
      },
    });
    document.body.append(this.root);
  }

  tell(summary) {
    app.extensionManager.toast.add({ severity: "success", summary, life: 4000 });
  }
}

const panel = new Panel();
const turns = new Turns();

function idle() {
  return new Promise((done) => (window.requestIdleCallback ?? setTimeout)(done));
}

function* rowLists() {
  for (const { node } of allNodes(app)) {
    const widget = NODES.includes(node.type) && node.widgets?.find(({ name }) => name === "rows");
    if (widget) yield { widget, label: `${node.title} (${node.id})` };
  }
}

// What the server says of a file; one that it cannot tell about counts as here.
async function looked(file) {
  const { name, sha256, size } = file;
  try {
    const { name: found, near = [], error } = await ask("resolve", { name, sha256, size });
    return { ...file, found, near, problem: error?.headline };
  } catch {
    return { ...file, found: name, near: [] };
  }
}

const listed = () => ask("loras").then(({ loras }) => loras);

async function replaceFiles(chosen) {
  const files = new Map();
  await Promise.all(
    [...chosen].map(async ([file, name]) => files.set(file.key, await pinOf(file, name))),
  );
  for (const { widget } of rowLists()) {
    const text = relinked(widget.value, files);
    if (text !== null) widget.value = text;
  }
  rememberForUndo(app);
}

// A file that was found by its hash keeps it; another one is pinned anew.
async function pinOf({ found, sha256, size }, name) {
  if (found && sha256) return { name, sha256, size };
  return ask("pin", { name }).catch(() => ({ name })); // the rows work without
}

function baseName(name) {
  return name.split(/[\\/]/).at(-1).replace(/\.[^.]+$/, "");
}
