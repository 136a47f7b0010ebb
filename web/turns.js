// Questions to the server, a few at a time: a browser has six connections, the others stay free.

const AT_ONCE = 3;

export class Turns {
  constructor() {
    this.running = 0;
    this.waiting = [];
  }

  // What `question()` promises, once it is its turn.
  async take(question) {
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
