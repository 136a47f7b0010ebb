// What the pack's routes answer. Every function may reject with an Error in words.
import { api } from "./comfy.js";
import { say } from "./messages.js";

const ROOT = "/lora_workbench";

export async function ask(route, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value != null);
  const answer = await api.fetchApi(`${ROOT}/${route}?${new URLSearchParams(given)}`);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw failure(body.error ?? noAnswer());
  return body;
}

export function previewAddress(name) {
  return api.apiURL(`${ROOT}/preview?${new URLSearchParams({ name })}`);
}

function noAnswer() {
  return { headline: say("noAnswer"), fix: say("noAnswerFix") };
}

function failure({ headline, fix, facts }) {
  const error = new Error(fix ? say("errorWithFix", { headline, fix }) : headline);
  error.facts = facts ?? {};
  return error;
}
