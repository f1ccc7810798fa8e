// The steps of a canary: taken, running and still to come.
import { html } from "../vendor/preact-htm.js";
import { duration, now, weight } from "../format.js";
import { isEnded } from "../state.js";

export function Steps({ rollout }) {
  const hasEnded = isEnded(rollout);
  const won = rollout.phase === "succeeded" || rollout.phase === "promoting";
  const passed = Math.min(1, Math.max(0, (now() - rollout.entered) / rollout.step_duration_s));
  const left = rollout.step_duration_s * (1 - passed);
  const isMoving = rollout.phase === "progressing" && !rollout.paused;
  return html`
    <ol class="canary-steps" aria-label="Steps">
      ${rollout.steps.map((step, i) => {
        const isTaken = i < rollout.step || won;
        const isNow = i === rollout.step && !hasEnded && !won;
        const fill = isTaken ? 1 : isNow ? (rollout.phase === "waiting" ? 1 : passed) : 0;
        return html`
          <li key=${i} class=${isNow ? "now" : isTaken ? "taken" : ""} aria-current=${isNow ? "step" : undefined}>
            <span class="step-track"><i style=${{ width: `${fill * 100}%` }}></i></span>
            <span class="step-weight">${weight(step)}</span>
            ${isNow && isMoving && html`<span class="note">${left > 0.5 ? `${duration(left)} left` : "due"}</span>`}
          </li>`;
      })}
    </ol>
  `;
}
