// What the pack's routes answer. Every function may reject with an Error in words.
import { api } from "./comfy.js";

const ROOT = "/lora_workbench";
const NO_ROUTE = {
  headline: "ComfyUI does not answer the pack's questions.",
  fix: "restart ComfyUI, so that it loads this version of LoRA Workbench.",
};

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
  if (!answer.ok) throw failure(body.error ?? NO_ROUTE);
  return body;
}

function failure({ headline, fix, facts }) {
  const error = new Error(fix ? `${headline} Fix: ${fix}` : headline);
  error.facts = facts ?? {};
  return error;
}
