// The conversation: messages in, an answer as it comes, and the way to stop it.

import { byId, count, make, setText } from "./dom.js";
import { ask, events, Refused } from "./net.js";
import { show } from "./text.js";

const NEAR_PX = 80;
const CONTINUED_TOKENS = 256; // of a model without a chat template, which may never end

const messages = [];
let model = null;
let stopping = null;

export function start() {
  const input = byId("message");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  input.addEventListener("input", grow);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && stopping) stop();
  });
  byId("stop").addEventListener("click", stop);
  byId("fresh").addEventListener("click", fresh);
}

/** What the model is, as soon as it is known. */
export function know(described, devices) {
  model = described;
  const names = devices.filter((each) => each.runs.length).map((each) => each.name);
  const runs = `It runs on ${count(names.length, "device")}: ${names.join(", ")}.`;
  const continues = model.chat ? "" : " It has no chat template: it continues your text.";
  setText(byId("where"), runs + continues);
  byId("system-label").hidden = !model.chat;
  byId("message").placeholder = model.chat ? "Message" : "Text to continue";
}

function grow() {
  const input = byId("message");
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight + 2, 220)}px`;
}

function stop() {
  stopping?.abort();
}

function fresh() {
  stop();
  messages.length = 0;
  byId("log").replaceChildren(byId("welcome") ?? kept);
  kept.hidden = false;
  byId("message").focus();
}

const kept = byId("welcome");

async function send() {
  const input = byId("message"), text = input.value;
  if (!text.trim() || stopping) return;
  input.value = "";
  grow();
  kept.hidden = true;
  add("user", "You", text);
  messages.push({ role: "user", content: text });
  const answer = add("assistant", "Answer", "");
  stopping = new AbortController();
  busy(true);
  const said = await receive(answer, text);
  stopping = null;
  busy(false);
  if (said === null) messages.pop(); // it was refused, and is no part of the conversation
  else messages.push({ role: "assistant", content: said });
  input.focus({ preventScroll: true });
}

/** Shows the answer as it comes; its text, null where there is none for an error. */
async function receive(answer, prompt) {
  const began = performance.now();
  let text = "", first = null, usage = null, due = false, reason = "";
  const draw = () => {
    due = false;
    const follow = nearEnd();
    show(answer.body, text.replace(/^\n+/, ""));
    if (follow) toEnd();
  };
  const note = (words) => {
    draw();
    setText(answer.meta, words);
    setText(byId("told"), `Answer ended. ${words}`);
  };
  try {
    const response = await ask(path(), { method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request(prompt)), signal: stopping.signal });
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      const piece = choice?.delta?.content ?? choice?.text ?? "";
      reason = choice?.finish_reason ?? reason;
      if (!piece) continue;
      first ??= performance.now();
      text += piece;
      if (!due) {
        due = true;
        requestAnimationFrame(draw);
      }
    }
    note(figures(usage, began, first, reason));
    return text;
  } catch (error) {
    if (error.name === "AbortError") {
      note("Stopped.");
      return text;
    }
    draw();
    const words = error instanceof Refused ? error.message : "The server cannot be reached.";
    answer.body.append(make("p", { className: "wrong", role: "alert" }, words));
    if (nearEnd()) toEnd();
    return text || null;
  }
}

function path() {
  return model?.chat === false ? "v1/completions" : "v1/chat/completions";
}

function request(prompt) {
  const body = { stream: true, stream_options: { include_usage: true } };
  const temperature = byId("temperature").valueAsNumber, most = byId("most").valueAsNumber;
  if (!Number.isNaN(temperature)) body.temperature = temperature;
  if (!Number.isNaN(most)) body.max_tokens = most;
  if (model?.chat === false) return { max_tokens: CONTINUED_TOKENS, ...body, prompt };
  const system = byId("system").value.trim();
  return { ...body, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages] };
}

function figures(usage, began, first, reason) {
  const words = [];
  const tokens = usage?.completion_tokens ?? 0;
  if (first !== null) words.push(`first text after ${((first - began) / 1000).toFixed(2)} s`);
  if (tokens > 1 && first !== null) {
    words.push(`${count(tokens, "token")}, ${((tokens - 1) / ((performance.now() - first) / 1000)).toFixed(1)} a second`);
  }
  if (reason === "length") words.push("ended at the most tokens");
  const said = words.join("; ");
  return said ? `${said[0].toUpperCase()}${said.slice(1)}.` : "An empty answer.";
}

function add(role, name, text) {
  const body = make("div", { className: "body" });
  if (text) show(body, text);
  const meta = make("p", { className: "meta" });
  const who = make("p", { className: "unseen" }, name);
  byId("log").append(make("article", { className: "said", data: { role } }, who, body, meta));
  toEnd();
  return { body, meta };
}

function busy(is) {
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  byId("log").setAttribute("aria-busy", String(is));
  document.body.dataset.busy = String(is);
  if (is && document.activeElement === document.body) byId("stop").focus({ preventScroll: true });
}

function nearEnd() {
  const log = byId("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
}

function toEnd() {
  const log = byId("log");
  log.scrollTop = log.scrollHeight;
}
