// The last error of each node, until its next output: undo and a change of tab bring old outputs.

const MOST = 64;

export class Errors {
  constructor() {
    this.all = new Map(); // by workflow and node; the oldest ones go
  }

  // `output` is the text of the output that stood there when the error came.
  add(workflow, node, text, output) {
    const key = keyOf(workflow, node);
    this.all.delete(key);
    this.all.set(key, { text, output });
    if (this.all.size > MOST) this.all.delete(this.all.keys().next().value);
  }

  // The error of a node whose present output has this text; null when there is none, or an older one.
  of(workflow, node, output) {
    const error = this.all.get(keyOf(workflow, node));
    return error && (!output || output === error.output) ? error.text : null;
  }

  forget(workflow, node) {
    this.all.delete(keyOf(workflow, node));
  }
}

// What an `execution_error` says; some exceptions have a type and no message.
export function errorText({ exception_message: message, exception_type: type }) {
  return message?.trim() ? message : (type ?? "");
}

function keyOf(workflow, node) {
  return JSON.stringify([workflow, node]);
}
