// Puts the page together and connects it to the gateway.
import { html, render } from "./vendor/preact-htm.js";
import { App } from "./app.js";
import { begin } from "./events.js";

const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);
begin();
