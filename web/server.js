// What the pack's routes answer. Every function may reject with an Error in words.
import { api } from "./comfy.js";
import { say } from "./messages.js";
import { Turns } from "./turns.js";

const ROOT = "/lora_workbench";
const turns = new Turns(); // of all questions that a workflow asks by itself

export async function ask(route, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value != null);
  return answered(await api.fetchApi(`${ROOT}/${route}?${new URLSearchParams(given)}`));
}

// As `ask`, a few at a time.
export function askInTurn(route, query) {
  return turns.take(() => ask(route, query));
}

export async function tell(route, told) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify(told);
  return answered(await api.fetchApi(`${ROOT}/${route}`, { method: "POST", headers, body }));
}

export function address(route, query) {
  return api.apiURL(`${ROOT}/${route}?${new URLSearchParams(query)}`);
}

export function previewAddress(name) {
  return address("preview", { name });
}

async function answered(answer) {
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw failure(body.error ?? noAnswer());
  return body;
}

function noAnswer() {
  return { headline: say("noAnswer"), fix: say("noAnswerFix") };
}

function failure({ headline, fix, facts }) {
  const error = new Error(fix ? say("errorWithFix", { headline, fix }) : headline);
  error.facts = facts ?? {};
  return error;
}
