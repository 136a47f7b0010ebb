// The weighting of one row: a strip of its factors, what is wrong with it, and the panel to edit it.
import { say } from "../messages.js";
import { element, iconButton } from "./element.js";
import { sparkline } from "./sparkline.js";
import { WeightingPanel } from "./weighting_panel.js";
import { oneLine } from "./weighting_rules.js";

// Args:
//   host.row: the row as it stands.
//   host.set(fields), host.finish(): new values within a gesture, and its end.
//   host.blocks(row): a promise of what the route `blocks` answers.
//   host.onresize(): the row became higher or lower.
export class RowWeighting {
  constructor(host) {
    this.host = host;
    this.strip = element("span", { class: "lw-strip" });
    this.told = element("p", { class: "lw-reasons", role: "status", hidden: true });
    this.place = element("div", {}, this.told);
    this.panel = null;
  }

  // An object of a workflow written elsewhere is shown as JSON, which the same field takes.
  get text() {
    const { weighting = "" } = this.host.row;
    return oneLine(typeof weighting === "string" ? weighting : JSON.stringify(weighting));
  }

  button() {
    const label = say("weightingEdit", { name: this.host.row.name });
    const attributes = { "data-field": "open-weighting" };
    this.toggle = iconButton("W", label, () => this.open(!this.panel), attributes);
    this.showState();
    return this.toggle;
  }

  open(isOpen) {
    this.panel?.element.remove();
    this.panel = isOpen ? new WeightingPanel(this.host.row.name, this) : null;
    if (isOpen) {
      this.place.prepend(this.panel.element);
      this.panel.show(null);
      this.panel.field.focus();
    }
    this.refresh();
    this.host.onresize();
  }

  // The row may be another one, or have other values.
  show() {
    if (this.panel && this.panel.name !== this.host.row.name) {
      const panel = new WeightingPanel(this.host.row.name, this);
      this.panel.element.replaceWith(panel.element);
      this.panel = panel;
      panel.show(null);
    }
    this.panel?.refresh();
    this.refresh();
  }

  set(text) {
    this.host.set({ weighting: text || undefined });
    this.showState();
  }

  finish() {
    this.host.finish();
    this.refresh();
  }

  // Ask what the text does in the model: it or the model may be another one.
  refresh() {
    this.showState();
    const asked = (this.asked = {});
    if (!this.text && !this.panel) {
      if (this.isTold) this.tell(null);
      return;
    }
    this.host.blocks({ ...this.host.row, weighting: this.text }).then(
      (known) => asked === this.asked && this.tell(known),
      (error) => asked === this.asked && this.tell(null, error.message),
    );
  }

  showState() {
    this.toggle?.setAttribute("aria-expanded", String(Boolean(this.panel)));
    this.toggle?.setAttribute("aria-pressed", String(Boolean(this.text)));
  }

  tell(known, failure = "") {
    this.isTold = known !== null || failure !== "";
    const isDrawn = this.text && known?.blocks.length && !known.problem;
    const label = say("weighting", { name: this.host.row.name });
    this.strip.replaceChildren(...(isDrawn ? [sparkline(label, known.blocks)] : []));
    this.panel?.show(known);
    const { level, text, details } = reasons(known, failure);
    const isAsHigh = this.told.hidden === !text && !this.panel;
    this.told.hidden = !text;
    this.told.textContent = text;
    this.told.title = details.join("\n");
    this.told.dataset.level = level;
    if (!isAsHigh) this.host.onresize();
  }
}

function reasons(known, failure) {
  if (failure) return { level: "wrong", text: failure, details: [] };
  if (known?.problem) {
    const { headline, facts, fix } = known.problem;
    const details = Object.entries(facts).map(([name, value]) => `${name}: ${value}`);
    return { level: "wrong", text: say("errorWithFix", { headline, fix }), details };
  }
  if (!known?.unmatched?.length) return { level: "ok", text: "", details: [] };
  const rules = known.unmatched.join(", ");
  const isModel = known.of === "model";
  const text = say(isModel ? "weightingNotInModel" : "weightingNotInBase", { rules });
  return { level: "partial", text, details: [] };
}
