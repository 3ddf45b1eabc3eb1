// Elements and words. What comes from a server or a model is only ever text: nothing here reads markup.

export const byId = (id) => document.getElementById(id);

/** An element: `props` are properties, `data` and `aria` among them; `children` are elements or texts. */
export function make(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name === "aria") Object.entries(value).forEach(([key, said]) => made.setAttribute(`aria-${key}`, said));
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Put `children` into `element`, unless what they show is there already. */
export function fill(element, key, children) {
  const text = JSON.stringify(key);
  if (element.dataset.key === text) return;
  element.dataset.key = text;
  element.replaceChildren(...children());
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Three figures, without an exponent. */
const three = (value) => (value >= 99.95 ? String(Math.round(value)) : value.toPrecision(value < 0.995 ? 2 : 3));

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 ms";
  if (value < 9.995e-4) return `${three(value * 1e6)} µs`;
  return value < 0.9995 ? `${three(value * 1e3)} ms` : `${three(value)} s`;
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let size = value, unit = 0;
  while (size >= 999.5 && unit < UNITS.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit ? three(size) : Math.round(size)} ${UNITS[unit]}`;
}

export const rate = (value) => (value === null || value === undefined ? "–" : `${bytes(value)}/s`);

/** Half-open ranges of blocks, as people write them. */
export function blocks(ranges) {
  const words = ranges.map(([start, stop]) => (stop === start + 1 ? `${start}` : `${start}–${stop - 1}`));
  return words.join(", ");
}

export const count = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;
