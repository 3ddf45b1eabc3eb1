// Requests to the server that this page came from, with its key where it asks for one.

import { byId } from "./dom.js";

const KEPT = "llrun-key";
let asking = null;

export class Refused extends Error {}

/** The response to a request; asks the user for a key where one is needed. Throws Refused with the server's own words. */
export async function ask(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEPT);
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    if (response.ok) return response;
    if (response.status !== 401) throw new Refused(await reasonOf(response));
    await askForKey(key);
  }
}

async function reasonOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** One dialog for all who wait; whoever used an older key than the one that is kept now need not ask. */
function askForKey(used) {
  if (sessionStorage.getItem(KEPT) !== used) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const dialog = byId("ask-key"), input = byId("key");
    byId("key-wrong").hidden = !used;
    input.value = "";
    byId("key-form").onsubmit = () => {
      sessionStorage.setItem(KEPT, input.value.trim());
      dialog.onclose = null;
      asking = null;
      resolve();
    };
    dialog.onclose = () => dialog.showModal(); // without a key there is nothing to see
    dialog.showModal();
    input.focus();
  });
  return asking;
}

/** The data of server-sent events, as texts. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const whole = rest.split("\n\n");
      rest = whole.pop();
      for (const event of whole) {
        const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
