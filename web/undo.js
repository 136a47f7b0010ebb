// The canvas's undo takes a step where it is told that something is complete.

const A_MOMENT = 50; // milliseconds

// Show another workflow in the open tab as one step of undo, where the view stands.
export async function replaceWorkflow(app, workflow) {
  rememberForUndo(app);
  const before = trackerOf(app)?.activeState;
  await app.loadGraphData(workflow, true, false, openWorkflow(app));
  if (before) trackerOf(app).reset(before); // loading made the new state the one to go back to
  rememberForUndo(app);
}

export function rememberForUndo(app) {
  const tracker = trackerOf(app);
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // as newer and older name it
}

// Change what undo and redo go to, and what the next step is compared with, without a step of its own.
// `amended(state)` gives another workflow in place of one, or the same.
export function amendHistory(app, workflow, amended) {
  const tracker = workflow?.changeTracker;
  if (!tracker) return;
  for (const states of [tracker.undoQueue, tracker.redoQueue])
    states.forEach((state, at) => (states[at] = amended(state)));
  tracker.activeState = amended(tracker.activeState);
  if (workflow === openWorkflow(app)) tracker.updateModified();
}

// As `amendHistory`, for the state alone that the next step is compared with.
export function amendPresent(app, amended) {
  const tracker = trackerOf(app);
  if (tracker && !isUnderWay(tracker)) tracker.activeState = amended(tracker.activeState);
}

// A promise that is kept once no undo or change of tab is under way: in its midst a state is in neither list.
export async function restored(workflow) {
  while (isUnderWay(workflow?.changeTracker)) await new Promise((done) => setTimeout(done, A_MOMENT));
}

// The workflow of the tab that is shown.
export function openWorkflow(app) {
  return app.extensionManager?.workflow?.activeWorkflow;
}

function isUnderWay(tracker) {
  return tracker?._restoringState || tracker?.constructor.isLoadingGraph;
}

function trackerOf(app) {
  return openWorkflow(app)?.changeTracker;
}
