// One rollout: where it stands and why, weights, guards, evidence, history, and what may be done.
import { html, useState } from "../vendor/preact-htm.js";
import { post } from "../api.js";
import { duration, now, recipeOf, weight } from "../format.js";
import { Confirm, Failure, useAction } from "../parts.js";
import { isEnded, mayOperate, say, set, state } from "../state.js";
import { Evidence } from "./evidence.js";
import { Guards } from "./guards.js";
import { History } from "./history.js";
import { Steps } from "./steps.js";

export function Rollout({ rollout }) {
  const hasEnded = isEnded(rollout);
  const phase = rollout.paused && !hasEnded ? "paused" : rollout.phase;
  return html`
    <article class="rollout" aria-label="${rollout.kind} ${rollout.id}">
      <div class="phase-line">
        <p class="phase ${phase}" role="status"><span class="dot" aria-hidden="true"></span>${phase}</p>
        <p class="rollout-what">
          <b>${rollout.kind}</b> ${rollout.tier ? `of tier ${rollout.tier}` : "of all tiers"}
          <span class="note">${hasEnded ? `took ${duration(rollout.updated - rollout.created)}` : `since ${duration(now() - rollout.created)}, at most ${duration(rollout.deadline - now())} more`}</span>
        </p>
      </div>
      <p class="reason">${rollout.reason}</p>
      <${Weights} rollout=${rollout} />
      ${rollout.steps.length > 0 && html`<${Steps} rollout=${rollout} />`}
      <${Guards} rollout=${rollout} />
      <${Evidence} rollout=${rollout} />
      ${!hasEnded && mayOperate() && html`<${Actions} rollout=${rollout} />`}
      <${History} rollout=${rollout} />
    </article>
  `;
}

function Weights({ rollout }) {
  const isShadow = rollout.kind === "shadow";
  return html`
    <div class="weights">
      <div class="weight-bar" aria-hidden="true">
        ${rollout.arms.map((arm, i) => arm.weight > 0 && html`<i key=${arm.name} class="arm-${Math.min(i, 4)}" style=${{ flexGrow: arm.weight }}></i>`)}
      </div>
      <ul>
        ${rollout.arms.map((arm, i) => html`
          <li key=${arm.name}><i class="swatch arm-${Math.min(i, 4)}" aria-hidden="true"></i>
            <b class="weight">${isShadow && i ? `copies of ${weight(rollout.fraction * 100)}` : weight(arm.weight)}</b>
            <span title=${arm.variant}>${recipeOf(arm.variant)}</span>
            <span class="note">${arm.name}${arm.outcome ? `, ${arm.outcome}` : ""}</span></li>`)}
      </ul>
    </div>
  `;
}

const CANDIDATES = (rollout) => rollout.arms.slice(1).map((arm) => recipeOf(arm.variant)).join(", ");
const CONFIRMED = {
  promote: { title: "Promote now?", kind: "primary", verb: "Promote", text: (r) => `${CANDIDATES(r)} is released at once, whatever the guards still wait for.` },
  abort: { title: "Abort the rollout?", kind: "danger", verb: "Abort", text: (r) => `All traffic goes back to ${recipeOf(r.primary)} within a second. ${CANDIDATES(r)} is left as it is.` },
};

function Actions({ rollout }) {
  const [asked, setAsked] = useState(null);
  const send = async (verb) => {
    const after = await post(`rollouts/${rollout.id}/${verb}`, { version: state.rollouts.get(rollout.id).version });
    state.rollouts.set(after.id, after);
    set({});
    say(`The rollout is ${after.paused ? "paused" : after.phase}.`);
  };
  const [sendNow, isBusy, error] = useAction(send);
  const isRunning = rollout.phase === "progressing" || rollout.phase === "waiting";
  return html`
    <div class="buttons rollout-buttons">
      <button class="primary" disabled=${!isRunning || isBusy} onClick=${() => setAsked("promote")}>Promote</button>
      ${rollout.paused
        ? html`<button key="resume" disabled=${!isRunning || isBusy} onClick=${() => sendNow("resume")}>Resume</button>`
        : html`<button key="pause" disabled=${!isRunning || isBusy} onClick=${() => sendNow("pause")}>Pause</button>`}
      <button class="danger" disabled=${isBusy} onClick=${() => setAsked("abort")}>Abort</button>
    </div>
    <${Failure} text=${error} />
    ${asked && html`<${Confirm} ...${CONFIRMED[asked]} text=${CONFIRMED[asked].text(rollout)} act=${() => send(asked)} onClose=${() => setAsked(null)} />`}
  `;
}
