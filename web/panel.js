// What our panels share.

const KEYS = ["keydown", "keyup", "copy", "cut", "paste"]; // else commands of the canvas
const BUTTON_OF_TEXT = 0; // the middle one moves the canvas

// Keys inside are for text and buttons: Delete must not take the node away.
export function keepKeys(root) {
  for (const type of KEYS) root.addEventListener(type, (event) => event.stopPropagation());
}

// The mouse too: a selection of text must neither drag the node nor be copied as a node.
export function keepInside(root) {
  keepKeys(root);
  root.addEventListener("pointerdown", (event) => {
    if (event.button === BUTTON_OF_TEXT) event.stopPropagation();
  });
}

// A DOM widget that is in no workflow and in no API prompt.
export function addPanel(node, name, root, { text = () => "", height }) {
  const widget = node.addDOMWidget(name, name, root, {
    serialize: false, // not into the API prompt
    getValue: text,
    setValue: () => {},
    getMinHeight: () => height,
  });
  widget.serialize = false; // nor into the workflow
  return widget;
}
