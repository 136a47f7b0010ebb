// LoRA files that an opened workflow names and this machine lacks, or has under another name.
//
// Rows are changed on the user's word alone, all of them in one step of undo. (A run finds a moved
// or renamed file by its hash all the same.)
import { app } from "../comfy.js";
import { offered } from "../commands.js";
import { idle } from "../idle.js";
import { say } from "../messages.js";
import { pickFiles } from "../pick_files.js";
import { replaceFiles } from "../replace_files.js";
import { rowLists } from "../row_lists.js";
import { Answers } from "../rows/answers.js";
import { baseName } from "../rows/file_name.js";
import { wantedFiles } from "../rows/relink.js";
import { relinkPanel } from "../rows/relink_panel.js";
import { askInTurn } from "../server.js";
import { toast } from "../toast.js";
import { openWorkflow } from "../undo.js";

const answers = new Answers((query) => askInTurn("resolve", query));

export const relink = {
  name: "loraWorkbench.relink",
  ...offered({ FindFiles: () => lookAgain({ always: true }) }),

  // Undo and a change of tab come here too: the panel is about what is on the canvas now.
  afterConfigureGraph() {
    panel.show({ always: false });
  },

  refreshComboInNodes() {
    lookAgain({ always: false });
  },
};

// Files were added, taken away or replaced.
export function lookAgain({ always }) {
  answers.forget();
  return panel.show({ always });
}

class Panel {
  constructor() {
    this.root = null;
    this.asked = 0;
    this.putAway = new Set(); // what the user has seen, until the page is loaded anew
  }

  async show({ always }) {
    const number = ++this.asked;
    await idle(); // the canvas is drawn first
    if (openWorkflow(app) !== this.workflow) this.remove();
    const wanted = wantedFiles(lists());
    const files = (await Promise.all(wanted.map(looked))).filter(({ name, found }) => found !== name);
    if (number !== this.asked) return; // another workflow has come meanwhile
    const key = JSON.stringify(files.map((file) => [file.key, file.found]));
    if (this.root?.isConnected && key === this.key) return; // what is chosen in it stays
    this.remove();
    if (always && !files.length) toast(app, "success", say("relinkAllHere"));
    if (files.length && (always || !this.putAway.has(key))) this.open(files, key);
  }

  open(files, key) {
    const workflow = openWorkflow(app);
    const close = () => {
      this.putAway.add(key);
      this.remove();
    };
    const root = relinkPanel(files, {
      pick: async (name) => (await pickFiles(app, baseName(name)))[0] ?? null,
      close,
      use: (chosen) => {
        close();
        return replaceFiles(app, chosen, workflow);
      },
    });
    Object.assign(this, { root, key, workflow });
    document.body.append(root);
  }

  remove() {
    this.root?.remove();
    this.root = null;
  }
}

const panel = new Panel();

function lists() {
  return [...rowLists(app)].map(({ label, widget }) => ({ label, text: widget.value }));
}

// What the server says of a file; one that it cannot tell about counts as here.
async function looked(file) {
  try {
    const { name: found, near = [], error } = await answers.of(file);
    return { ...file, found, near, problem: error?.headline };
  } catch {
    return { ...file, found: file.name, near: [] };
  }
}
