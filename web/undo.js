// The canvas's undo takes a step where it is told that something is complete.

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

// The workflow of the tab that is shown.
export function openWorkflow(app) {
  return app.extensionManager?.workflow?.activeWorkflow;
}

function trackerOf(app) {
  return openWorkflow(app)?.changeTracker;
}
