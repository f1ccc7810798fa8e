// The rollout that runs, or the way to start one; below it those that ended.
import { html, useState } from "../vendor/preact-htm.js";
import { ago, duration, recipeOf } from "../format.js";
import { Panel } from "../parts.js";
import { isEnded, mayOperate, rolloutsOf } from "../state.js";
import { Rollout } from "./rollout.js";
import { StartForm } from "./start.js";

const SHOWN = 5;

export function RolloutPanel({ model, variants }) {
  const [isStarting, setStarting] = useState(false);
  const all = rolloutsOf(model.model);
  const running = all.filter((r) => !isEnded(r));
  const ended = all.filter(isEnded);
  const [chosen, setChosen] = useState(undefined); // nothing runs: the last that ended is open until one chooses
  const opened = chosen === undefined && !running.length ? ended[0]?.id : chosen;
  const start = mayOperate() && html`
    <button class=${running.length ? "" : "primary"} onClick=${() => setStarting(true)}>Start a rollout</button>`;
  return html`
    <${Panel} id="rollout" title="Rollout" action=${start}>
      ${running.map((rollout) => html`<${Rollout} key=${rollout.id} rollout=${rollout} />`)}
      ${!running.length && html`
        <p class="empty">No rollout is running: the router alone decides who answers.</p>`}
      ${ended.length > 0 && html`
        <h3 class="ended-head">Ended</h3>
        <ul class="ended">${ended.slice(0, SHOWN).map((rollout) => html`
          <${Ended} key=${rollout.id} rollout=${rollout} isOpen=${opened === rollout.id}
            onToggle=${() => setChosen(opened === rollout.id ? null : rollout.id)} />`)}</ul>`}
      ${isStarting && html`<${StartForm} model=${model} variants=${variants} onClose=${() => setStarting(false)} />`}
    <//>
  `;
}

function Ended({ rollout, isOpen, onToggle }) {
  const candidates = rollout.arms.slice(1).map((arm) => recipeOf(arm.variant)).join(", ");
  return html`
    <li>
      <button class="ended-line" aria-expanded=${isOpen ? "true" : "false"} onClick=${onToggle}>
        <span class="state ${rollout.phase}">${rollout.phase}</span>
        <span class="ended-what">${rollout.kind} of ${candidates}</span>
        <span class="note">${ago(rollout.updated)}</span>
      </button>
      ${!isOpen && html`<p class="sub">${rollout.reason}, after ${duration(rollout.updated - rollout.created)}</p>`}
      ${isOpen && html`<${Rollout} rollout=${rollout} />`}
    </li>
  `;
}
