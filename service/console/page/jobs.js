// What builders do, and the form that asks them for more.
import { html, useState } from "./vendor/preact-htm.js";
import { post } from "./api.js";
import { ago, duration, now, recipeOf } from "./format.js";
import { Failure, Panel, useAction } from "./parts.js";
import { BuildForm } from "./build.js";
import { jobsOf, mayOperate, say } from "./state.js";

const SHOWN = 6;

export function Jobs({ model }) {
  const [isOpen, setOpen] = useState(false);
  const jobs = jobsOf(model.model);
  const action = mayOperate() && html`<button onClick=${() => setOpen(true)}>Build a variant</button>`;
  return html`
    <${Panel} id="jobs" title="Builds" action=${action}>
      ${jobs.length
        ? html`<ul class="jobs">${jobs.slice(0, SHOWN).map((job) => html`<${Job} key=${job.id} job=${job} />`)}</ul>`
        : html`<p class="empty">Nothing was asked of a builder yet.</p>`}
      ${isOpen && html`<${BuildForm} model=${model} onClose=${() => setOpen(false)} />`}
    <//>
  `;
}

function Job({ job }) {
  const [cancel, isBusy, error] = useAction(() => post(`jobs/${job.id}/cancel`), () => say("The builder was asked to stop."));
  const isRunning = job.state === "running" || job.state === "queued";
  const phrase = job.error ?? (job.phrase === job.state ? "" : job.phrase);
  return html`
    <li class="job ${job.state}">
      <div class="job-line">
        <span class="state ${job.state}">${job.cancelling && isRunning ? "cancelling" : job.state}</span>
        <span class="job-kind">${job.kind} ${job.result?.variant ? recipeOf(job.result.variant) : ""}</span>
        <span class="note">${job.finished ? ago(job.finished) : job.started ? duration(now() - job.started) : `asked ${ago(job.created)}`}</span>
        ${isRunning && mayOperate() && html`<button class="quiet" disabled=${isBusy || job.cancelling} onClick=${cancel}>Cancel</button>`}
      </div>
      ${isRunning && html`
        <progress max="1" value=${job.state === "queued" ? 0 : (job.fraction ?? undefined)} aria-label="${job.kind} of ${job.model}"></progress>`}
      ${phrase && html`<p class=${job.error ? "failure" : "sub"}>${phrase}</p>`}
      <${Failure} text=${error} />
    </li>
  `;
}
