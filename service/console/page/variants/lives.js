// What an operator may do with a variant's life.
import { html, useState } from "../vendor/preact-htm.js";
import { post, segment } from "../api.js";
import { Confirm } from "../parts.js";
import { mayOperate, say } from "../state.js";

const CHANGES = {
  candidate: [["release", "Release"], ["retire", "Retire"]],
  released: [["retire", "Retire"]],
  retired: [["load", "Load as candidate"]],
};
const MEANING = {
  release: "The router may choose it from now on: gateways follow within a second.",
  retire: "It gets no more traffic, and leaves memory. Its artifact stays in the store.",
  load: "It is loaded, and gets no traffic until it is released or in a rollout.",
};

export function Lives({ model, variant, size = "quiet" }) {
  const [asked, setAsked] = useState(null);
  if (!mayOperate()) return null;
  const act = async () => {
    const done = await post(`models/${segment(model.model)}/variants/${segment(variant.version)}/${asked[0]}`);
    say(`${variant.name} is ${done.life}; it was ${done.was}.`);
  };
  return html`
    ${(CHANGES[variant.life] ?? []).map(([verb, label]) => html`
      <button class=${size} aria-label="${label} ${variant.name}" onClick=${() => setAsked([verb, label])}>${label}</button>`)}
    ${asked && html`<${Confirm} title="${asked[1]} ${variant.name}?" text=${MEANING[asked[0]]} verb=${asked[1]}
      kind=${asked[0] === "retire" ? "danger" : "primary"} act=${act} onClose=${() => setAsked(null)} />`}
  `;
}
