// The workflow of a run.

const TRIES = 5;
const BETWEEN = 200; // milliseconds; the history has a run shortly after its last event

// The id of the workflow that a prompt was made of; null for one that says none, as from a script.
// `ask(route)` gives a promise of the server's JSON.
export async function workflowOfRun(prompt, ask) {
  for (let tries = TRIES; tries; tries--) {
    const history = await ask(`/history/${prompt}`).catch(() => ({}));
    const extra = history[prompt]?.prompt?.[3];
    if (extra) return extra.extra_pnginfo?.workflow?.id ?? null;
    await new Promise((done) => setTimeout(done, BETWEEN));
  }
  return null;
}
