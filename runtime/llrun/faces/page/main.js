// Begins everything: the chat, the cluster live, and which of the two a narrow screen shows.

import * as chat from "./chat.js";
import * as cluster from "./cluster.js";
import { byId } from "./dom.js";
import { ask, events } from "./net.js";

const AGAIN_MS = 2000;

function views() {
  const buttons = { chat: byId("view-chat"), cluster: byId("view-cluster") };
  for (const [name, button] of Object.entries(buttons)) {
    button.addEventListener("click", () => {
      document.body.dataset.view = name;
      for (const [other, each] of Object.entries(buttons)) each.setAttribute("aria-pressed", String(other === name));
    });
  }
}

/** Watch for as long as the page is there; a connection that ends is made again. */
async function watch() {
  for (;;) {
    try {
      const response = await ask("cluster/events");
      for await (const data of events(response)) {
        const now = JSON.parse(data);
        chat.know(now.model, now.devices);
        cluster.draw(now);
      }
    } catch (error) {
      console.debug(error);
    }
    cluster.unheard();
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

views();
chat.start();
watch();
