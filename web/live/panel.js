// How a long-running node gets on: progress, a chart, pictures, and two ways to stop it.
import { Chart } from "./chart.js";
import { progressText, stateText } from "./words.js";
import { say } from "../messages.js";
import { keepInside } from "../panel.js";
import { openDialog } from "../rows/dialog.js";
import { element } from "../rows/element.js";

// Args:
//   host.picture(state, number): the address of a picture.
//   host.keep(state): a promise that the wish to stop and keep is noted.
//   host.stop(state): interrupt the run.
export class LivePanel {
  constructor(host) {
    this.host = host;
    this.state = null;
    this.thumbnails = new Map(); // by address
    this.bar = element("progress", { "aria-label": say("liveStepsDone") });
    this.line = element("p", { class: "lw-live-line" });
    this.status = element("p", { class: "lw-dim", role: "status" });
    this.keep = button(say("liveStopKeep"), say("liveStopKeepHelp"), () => this.onKeep());
    this.stop = button(say("liveStop"), say("liveStopHelp"), () => host.stop(this.state));
    this.chart = new Chart();
    this.strip = element("ul", { class: "lw-pictures", "aria-label": say("livePictures") });
    const buttons = element("div", { class: "lw-live-top" }, this.bar, this.keep, this.stop);
    const parts = [buttons, this.status, this.line, this.chart.root, this.strip];
    const attributes = { class: "lw-live", role: "group", "aria-label": say("live") };
    this.root = element("div", attributes, ...parts);
    keepInside(this.root);
    this.render();
  }

  show(state) {
    this.state = state;
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.render();
    });
  }

  // Until the next state.
  tell(text) {
    setText(this.status, text);
  }

  render() {
    const { state } = this;
    const isRunning = state?.state === "running";
    const { step = 0, total = 1 } = state?.progress ?? {};
    this.bar.max = total || 1;
    this.bar.value = step;
    this.keep.disabled = !isRunning || state.keep;
    this.stop.disabled = !isRunning;
    setText(this.status, state ? stateText(state) : say("liveIdle"));
    setText(this.line, state ? progressText(state.progress, isRunning) : "");
    this.root.dataset.state = state?.state ?? "idle";
    this.chart.show(state?.points ?? {});
    this.showPictures();
  }

  showPictures() {
    const { prompt, pictures = [] } = this.state ?? {};
    const shown = JSON.stringify([prompt, pictures]);
    if (shown === this.shown) return;
    this.shown = shown;
    this.strip.hidden = !pictures.length;
    // The same element for the same picture: each is asked for once.
    const before = this.thumbnails;
    this.thumbnails = new Map();
    for (const picture of pictures) {
      const key = this.host.picture(this.state, picture.number);
      this.thumbnails.set(key, before.get(key) ?? this.thumbnail(picture));
    }
    this.strip.replaceChildren(...[...this.thumbnails.values()].reverse()); // the newest first
  }

  thumbnail({ number, caption }) {
    const source = this.host.picture(this.state, number);
    const label = caption || say("livePicture", { number });
    const image = element("img", { src: source, alt: label });
    const enlarge = () => {
      const large = element("img", { class: "lw-large", src: source, alt: label });
      const close = element("button", { type: "button", onclick: () => dialog.close() }, say("close"));
      const foot = element("div", { class: "lw-searchline lw-end" }, label, close);
      const dialog = openDialog(label, () => {}, large, foot);
      close.focus();
    };
    const title = say("liveEnlarge", { label });
    const attributes = { type: "button", title, "aria-label": title, onclick: enlarge };
    return element("li", {}, element("button", attributes, image));
  }

  async onKeep() {
    const { state } = this;
    this.keep.disabled = true;
    try {
      await this.host.keep(state);
      const { prompt, state: now } = this.state; // the end may have come before the answer
      if (prompt === state.prompt && now === "running")
        setText(this.status, stateText({ ...state, keep: true }));
    } catch (error) {
      this.tell(error.message);
    }
  }
}

function button(text, title, onclick) {
  return element("button", { type: "button", title, onclick }, text);
}

// A status that is written again is read out again.
function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}
