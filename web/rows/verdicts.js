// What each file, or its weighting, would do to a model: asked once per file, model and weighting.
import { Turns } from "./turns.js";

// `ask(query)` gives a promise of the answer.
export class Verdicts {
  constructor(ask) {
    this.ask = ask;
    this.known = new Map();
    this.turns = new Turns();
  }

  // A row that pins its file is judged by that file, wherever it lies.
  of({ name, sha256, size }, checkpoint, more = {}) {
    const query = { name, sha256, size, ...checkpoint, ...more };
    const key = JSON.stringify(query);
    if (!this.known.has(key)) {
      const answer = this.turns.take(() => this.ask(query));
      this.known.set(key, answer);
      answer.catch(() => this.known.delete(key)); // a server that comes back is asked again
    }
    return this.known.get(key);
  }

  // Files may have changed.
  forget() {
    this.known.clear();
  }
}
