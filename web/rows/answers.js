// Answers about files: asked once per question, until files may have changed.

const MOST = 2000; // more than the rows of a workflow; they are asked for with each change of the graph

// `ask(query)` gives a promise of the answer.
export class Answers {
  constructor(ask, most = MOST) {
    this.ask = ask;
    this.most = most;
    this.known = new Map(); // by question, the last one that was needed last
  }

  // About the file of a row, wherever it lies when the row pins it; `more` is the rest of the question.
  of({ name, sha256, size }, more = {}) {
    const query = { name, sha256, size, ...more };
    const key = JSON.stringify(query);
    const answer = this.known.get(key) ?? this.asked(key, query);
    this.known.delete(key);
    this.known.set(key, answer);
    if (this.known.size > this.most) this.known.delete(this.known.keys().next().value);
    return answer;
  }

  asked(key, query) {
    const answer = this.ask(query);
    // A server that comes back is asked again.
    answer.catch(() => this.known.get(key) === answer && this.known.delete(key));
    return answer;
  }

  // Files may have changed.
  forget() {
    this.known.clear();
  }
}
