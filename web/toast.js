// A note at the edge of the canvas that goes away by itself.

export function toast(app, severity, summary) {
  app.extensionManager.toast.add({ severity, summary, life: 4000 });
}
