// What the pack's routes answer. Every function may reject with an Error in words.
import { api } from "./comfy.js";
import { say } from "./messages.js";

const ROOT = "/lora_workbench";

export async function ask(route, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value != null);
  return answered(await api.fetchApi(`${ROOT}/${route}?${new URLSearchParams(given)}`));
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
