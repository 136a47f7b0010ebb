// The states of live panels, put together from the server's events.
import { appended } from "./series.js";

const MOST_STATES = 16;
const EMPTY = { state: "running", keep: false, progress: {}, points: {}, pictures: [] };

// The state after an event; null when events before it are missing.
export function applied(state, event) {
  const isNext = state && state.prompt === event.prompt;
  const before = isNext ? state : { ...EMPTY, number: 0 };
  if (event.number <= before.number) return before;
  if (event.number !== before.number + 1) return null;
  const points = { ...before.points };
  for (const [name, more] of Object.entries(event.points ?? {}))
    points[name] = appended(points[name] ?? [], more);
  return { ...before, ...event, points };
}

// By workflow and node; the ones that changed longest ago go.
export class States {
  constructor() {
    this.all = new Map();
  }

  get(workflow, node) {
    return this.all.get(keyOf(workflow, node));
  }

  of(workflow) {
    return [...this.all.values()].filter((state) => state.workflow === workflow);
  }

  // Take an event; false when the whole state has to be asked for.
  take(event) {
    const state = applied(this.all.get(keyOf(event.workflow, event.node)), event);
    if (state) this.set(state);
    return state !== null;
  }

  // Take whole states from the server, unless events of the same run have gone further.
  load(snapshots, workflow) {
    for (const state of this.of(workflow))
      if (state.state === "running" && !snapshots.some((other) => isSame(state, other)))
        this.set({ ...state, state: "lost", keep: false });
    for (const snapshot of snapshots) {
      const known = this.all.get(keyOf(snapshot.workflow, snapshot.node));
      if (!known || !isSame(known, snapshot) || known.number <= snapshot.number) this.set(snapshot);
    }
  }

  set(state) {
    const key = keyOf(state.workflow, state.node);
    this.all.delete(key);
    this.all.set(key, state);
    if (this.all.size > MOST_STATES) this.all.delete(this.all.keys().next().value);
  }
}

function keyOf(workflow, node) {
  return JSON.stringify([workflow, node]);
}

function isSame(state, other) {
  return state.prompt === other.prompt && state.node === other.node;
}
