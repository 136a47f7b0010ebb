// What each file, or its weighting, would do to a model: asked once per file, model and weighting.

const AT_ONCE = 3; // a browser has six connections to a server; the others stay free

// `ask(query)` gives a promise of `{level, text, details}`.
// `ask(query)` gives a promise of the answer.
export class Verdicts {
  constructor(ask) {
    this.ask = ask;
    this.known = new Map();
    this.running = 0;
    this.waiting = [];
  }

  // A row that pins its file is judged by that file, wherever it lies.
  of({ name, sha256, size }, checkpoint, more = {}) {
    const query = { name, sha256, size, ...checkpoint, ...more };
    const key = JSON.stringify(query);
    if (!this.known.has(key)) {
      const answer = this.inTurn(() => this.ask(query));
      this.known.set(key, answer);
      answer.catch(() => this.known.delete(key)); // a server that comes back is asked again
    }
    return this.known.get(key);
  }

  // Files may have changed.
  forget() {
    this.known.clear();
  }

  async inTurn(question) {
    if (this.running === AT_ONCE) await new Promise((resume) => this.waiting.push(resume));
    else this.running += 1;
    try {
      return await question();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.running -= 1;
    }
  }
}
