// An answer's text, as elements: paragraphs as they are, and what stands between fences as code.

import { make } from "./dom.js";

const FENCE = /^```[^\n`]*$/;

/** Put `text` into `element`; a fence that is not closed yet is code up to the end. */
export function show(element, text) {
  const parts = [];
  let lines = [], code = false;
  const close = () => {
    if (lines.length === 0) return;
    const body = lines.join("\n");
    parts.push(code ? make("pre", { tabIndex: 0 }, make("code", {}, body)) : make("p", {}, body));
    lines = [];
  };
  for (const line of text.split("\n")) {
    if (FENCE.test(line.trim())) {
      close();
      code = !code;
    } else {
      lines.push(line);
    }
  }
  close();
  element.replaceChildren(...parts);
}
