// The wheel over an element of ours: it scrolls what there is to scroll, and else zooms the canvas.

export function scrollOrZoom(element, app) {
  // Nodes 2.0 leaves the wheel to the element with the focus inside this mark.
  element.dataset.captureWheel = "true";
  element.addEventListener("wheel", (event) => {
    if (element.scrollHeight > element.clientHeight && !event.ctrlKey) {
      event.stopPropagation();
      return;
    }
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
}
