// The cluster as it is now: drawn anew whenever the server says that something has changed.

import { blocks, bytes, byId, count, fill, make, rate, seconds, setText } from "./dom.js";

const COLOURS = 8;
const STATES = {
  ready: "Ready",
  loading: "Loading",
  recovering: "A device was lost",
  ended: "Ended",
};
const SPEED_S = 2;

const cards = new Map();
const colours = new Map();
const there = new Map();
let heads = [];
let counted = [];
let newest = 0;

export function draw(now) {
  now.devices.forEach((each) => colours.has(each.name) || colours.set(each.name, colours.size % COLOURS));
  condition(now);
  figures(now);
  map(now);
  way(now);
  devices(now);
  links(now);
  happened(now);
}

/** The server is not heard. */
export function unheard() {
  const badge = byId("condition");
  badge.dataset.state = "gone";
  setText(badge, "Not reached");
}

function condition(now) {
  const badge = byId("condition"), { done_bytes: done, total_bytes: total } = now.loading;
  const far = now.condition === "loading" && total ? ` ${Math.floor((100 * done) / total)} %` : "";
  badge.dataset.state = now.condition;
  setText(badge, STATES[now.condition] + far);
  const { name, precision, context } = now.model;
  setText(byId("model"), `${name} · ${precision.weights} · ${context} tokens of context`);
  document.title = `${name} – llrun`;
}

function figures(now) {
  const last = speedOf(now.tokens), speed = now.queue?.running ? last : null;
  setText(byId("rate"), speed === null ? "–" : speed.toFixed(speed < 10 ? 1 : 0));
  const one = speed ? now.queue.running / speed : null;
  setText(byId("token-time"), one === null ? "–" : seconds(one));
  const queue = now.queue;
  setText(byId("requests"), queue ? `${queue.running} of ${queue.slots}` : "–");
  setText(byId("requests-name"), queue?.waiting ? `Requests, ${queue.waiting} wait` : "Requests");
  setText(byId("moves"), queue ? String(queue.moves) : "–");
}

/** Tokens a second over the last seconds; null while none come. */
function speedOf(tokens) {
  if (!tokens) {
    counted = [];
    return null;
  }
  counted.push(tokens);
  while (counted.length > 2 && tokens.at_s - counted[1].at_s > SPEED_S) counted.shift();
  const [first] = counted, spent = tokens.at_s - first.at_s;
  const speed = spent > 0 ? (tokens.count - first.count) / spent : 0;
  return speed > 0 ? speed : null;
}

function coloured(element, name) {
  element.dataset.colour = colours.get(name) ?? 0;
  return element;
}

function map(now) {
  fill(byId("map"), [now.stages, now.devices.map((each) => each.alive)], () => {
    const strip = make("div", { className: "strip", role: "img", aria: { label: said(now) } });
    for (const stage of now.stages) {
      const piece = make("div", { className: "piece" });
      piece.style.flexGrow = stage.blocks[1] - stage.blocks[0];
      stage.devices.forEach((name, rank) => {
        const part = coloured(make("div", { className: "part", title: `${name}: blocks ${blocks([stage.blocks])}` }), name);
        part.style.flexGrow = stage.shares[rank];
        piece.append(part);
      });
      piece.append(make("span", { className: "numbers" }, make("span", {}, blocks([stage.blocks]))));
      strip.append(piece);
    }
    return [strip, make("ul", { className: "legend" }, ...now.devices.map(legend(now.stages)))];
  });
}

/** What a device has of the stages, alone and with others. */
const legend = (stages) => ({ name, alive }) => {
  const mine = stages.filter((stage) => stage.devices.includes(name));
  const words = mine.map(({ blocks: range, devices, shares, window }) => {
    const share = devices.length > 1 ? ` (${Math.round(100 * shares[devices.indexOf(name)])} %)` : "";
    return blocks([range]) + share + (window ? ` (${window} in memory at once)` : "");
  });
  const chip = coloured(make("span", { className: "chip" }, name), name);
  return make("li", {}, chip, words.length ? words.join(", ") : alive === false ? "not there" : "no blocks now");
};

function said(now) {
  const each = now.stages.map((stage) => `blocks ${blocks([stage.blocks])} on ${stage.devices.join(" and ")}`);
  return `${count(now.blocks, "block")}: ${each.join("; ")}`;
}

function way(now) {
  const token = now.token;
  setText(byId("way-note"), token ? wayNote(token) : "It is shown as soon as a token was produced.");
  fill(byId("way"), token, () => (token ? token.legs.map((leg) => row(leg, longest(token), now.stages)) : []));
}

function wayNote(token) {
  const total = token.legs.reduce((sum, leg) => sum + taken(leg), 0);
  const others = token.sequences > 1 ? `, with those of ${count(token.sequences - 1, "other request")}` : "";
  const about = token.legs.some((leg) => leg.measured === false) ? " ≈: in part as planned." : "";
  return `Token ${token.position + 1}${others}: ${seconds(total)}, idle times aside.${about}`;
}

/** A group works side by side: the slowest counts. */
const taken = (leg) => (leg.kind === "hop" ? (leg.seconds ?? 0) : Math.max(...leg.spent.map((each) => each.compute_s)));
const longest = (token) => Math.max(...token.legs.map(taken), 1e-9);

function row(leg, most, stages) {
  const bar = (time) => {
    const made = make("span", { className: "time" });
    made.style.width = `${Math.max((100 * time) / most, 0.5)}%`;
    return made;
  };
  if (leg.kind === "hop") {
    const track = make("span", { className: "track", aria: { hidden: "true" } }, bar(taken(leg)));
    const what = make("span", { className: "what" }, `to ${leg.to}`, make("small", {}, bytes(leg.bytes)));
    const about = leg.measured || leg.seconds === null ? "" : "≈ ";
    return make("li", { className: "leg hop" }, what, track, make("span", { className: "took" }, about + seconds(leg.seconds)));
  }
  const bars = leg.spent.map((each) => coloured(bar(each.compute_s), each.device));
  const track = make("span", { className: "track", aria: { hidden: "true" } }, ...bars);
  const names = leg.spent.map((each) => each.device).join(" + ");
  const waited = leg.spent.reduce((sum, each) => Math.max(sum, each.wait_s), 0);
  const summed = stages.find((stage) => stage.blocks[0] === leg.blocks[0])?.all_reduce;
  const sums = summed ? ` · sums by ${summed}` : "";
  const idle = waited > 0 ? ` · idle ${seconds(waited)}` : "";
  const what = make("span", { className: "what" }, names, make("small", {}, `blocks ${blocks([leg.blocks])}${sums}${idle}`));
  return make("li", { className: "leg" }, what, track, make("span", { className: "took" }, seconds(taken(leg))));
}

function devices(now) {
  const here = byId("devices"), names = now.devices.map((each) => each.name);
  for (const [name, card] of cards) {
    if (names.includes(name)) continue; // of another bundle, which was served before
    card.remove();
    cards.delete(name);
  }
  for (const each of now.devices) {
    if (!cards.has(each.name)) {
      cards.set(each.name, make("article", { className: "card device" }));
      here.append(cards.get(each.name));
    }
    const card = cards.get(each.name);
    const state = stateOf(each, now.queue);
    card.dataset.state = state;
    fill(card, [each, state], () => device(each, state, each.name === now.head));
  }
}

function stateOf(each, queue) {
  if (each.alive === null) return "unknown";
  if (!each.alive) return "away";
  if (!each.runs.length) return "idle";
  return queue?.running ? "runs" : "ready";
}

const STATE_WORDS = { unknown: "not known yet", away: "not there", runs: "computes", ready: "ready", idle: "runs no blocks" };

function device(each, state, head) {
  const title = make("h4", {}, coloured(make("span", { className: "dot", aria: { hidden: "true" } }), each.name), each.name,
    head ? make("small", {}, "head") : null, each.standby ? make("small", {}, "standby") : null);
  const rows = [];
  const add = (name, value) => value && rows.push(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  const spare = each.spare.length ? `; holds ${blocks(each.spare)} too` : "";
  add("Blocks", each.runs.length ? `${blocks(each.runs)} (${bytes(each.weights_bytes)})${spare}` : `none${spare}`);
  if (each.streamed) add("From disk", `${count(each.streamed, "block")} for each token`);
  const measured = each.measured;
  if (measured && measured.compute_s !== null) {
    const sends = measured.send_s ? `, sends ${seconds(measured.send_s)}` : "";
    add("A token", `computes ${seconds(measured.compute_s)}, idle ${seconds(measured.wait_s)}${sends}`);
  }
  if (measured?.slowness) add("Speed", `${(1 / measured.slowness).toFixed(2)} of the plan’s`);
  add("Processor", `${each.target}, ${count(each.threads, "thread")}`);
  return [
    make("div", { className: "top" }, title, make("p", { className: "state" }, STATE_WORDS[state])),
    memory(each.memory),
    make("dl", {}, ...rows),
  ];
}

function memory({ limit_bytes: limit, planned_bytes: planned, peak_bytes: peak, free_bytes: free }) {
  const bar = make("div", { className: "meter", aria: { hidden: "true" } });
  const part = (name, size) => {
    const made = make("span", { className: name });
    made.style.width = `${Math.min((100 * size) / limit, 100)}%`;
    bar.append(made);
  };
  if (peak !== null) part(peak > limit ? "used over" : "used", peak);
  part("planned", planned);
  const words = `Memory: ${peak === null ? "not known yet" : bytes(peak)} of ${bytes(limit)}, planned ${bytes(planned)}`;
  const left = free === null ? "" : `Its system has ${bytes(free)} left`;
  return make("div", { className: "memory" }, bar, make("p", {}, words), make("p", {}, left));
}

function links(now) {
  fill(byId("links"), now.links, () =>
    now.links.map((link) => {
      const figure = (measured, planned, words) =>
        measured === null ? make("td", { className: "planned" }, words(planned)) : make("td", {}, words(measured));
      return make("tr", {}, make("th", { scope: "row" }, link.from), make("td", {}, link.to),
        figure(link.latency_s, link.planned_latency_s, seconds),
        figure(link.bytes_per_s, link.planned_bytes_per_s, rate),
        make("td", {}, link.token_bytes ? bytes(link.token_bytes) : "–"));
    }),
  );
}

function tell(at, text, bad) {
  const line = make("li", {}, make("time", {}, new Date(at * 1000).toLocaleTimeString()), make("span", {}, text));
  if (bad) line.dataset.kind = "lost";
  byId("events").prepend(line);
  heads.push(line);
}

/** Lines that are new since the last look are added, so that a reader hears each once. */
function happened(now) {
  if (now.events.length && now.events.at(-1).number < newest) {
    newest = 0; // another server
    heads.forEach((each) => each.remove());
    heads = [];
  }
  for (const { number, at_s: at, text } of now.events) {
    if (number <= newest) continue;
    newest = number;
    tell(at, text, /\blost\b/.test(text));
  }
  for (const { name, alive } of now.devices) {
    // Of a device without blocks the session has nothing to say when it goes.
    const told = now.events.some(({ text }) => text.includes(`device ${name} was lost`));
    if (there.get(name) && alive === false && !told) tell(Date.now() / 1000, `device ${name} is gone; it ran no blocks`, true);
    if (alive !== null) there.set(name, alive);
  }
  byId("no-events").hidden = heads.length > 0;
}
