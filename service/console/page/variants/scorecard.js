// All that is known of one build.
import { html } from "../vendor/preact-htm.js";
import { bytes, count, duration, ms, number, percent, rate } from "../format.js";
import { Dialog } from "../parts.js";
import { Lives } from "./lives.js";
import { isMetricOfShares } from "./variant.js";

export function Scorecard({ model, variant, onClose }) {
  return html`
    <${Dialog} title=${variant.name} onClose=${onClose} size="large">
      <p class="card-line">
        <span class="state ${variant.life} ${variant.status}">${variant.life}, ${variant.status}</span>
        <code>${variant.build}</code>
        ${variant.runtime && html`<span class="note">${variant.runtime} ${variant.precision}, ${variant.threads} thread${variant.threads === 1 ? "" : "s"}</span>`}
      </p>
      ${variant.reason && html`<p class="hint">${variant.reason}</p>`}
      <div class="card">
        <${Quality} model=${model} variant=${variant} />
        <${Size} variant=${variant} />
        <${Latency} profile=${variant.profile} />
        <${Recipe} variant=${variant} />
        <${Classes} variant=${variant} />
      </div>
      <div class="buttons"><${Lives} model=${model} variant=${variant} size="" /><button onClick=${onClose}>Close</button></div>
    <//>
  `;
}

function Facts({ title, facts }) {
  const known = facts.filter(([, value]) => value !== null && value !== undefined && value !== "–");
  if (!known.length) return null;
  return html`<section><h3>${title}</h3><dl class="facts">
    ${known.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></section>`;
}

function Quality({ model, variant }) {
  const show = isMetricOfShares(model.metric) ? (v) => percent(v, 2) : (v) => number(v, 4);
  const { quality } = variant;
  if (!quality) return null;
  const split = (name) => {
    const part = quality[name];
    return part ? html`${show(part.value)} <small>${show(part.low)} to ${show(part.high)}, ${part.rows} rows</small>` : null;
  };
  return html`<${Facts} title="Quality" facts=${[
    [`${model.metric}, validation`, split("validation")],
    [`${model.metric}, test`, split("test")],
    ["of the reference", percent(quality.validation?.ratio)],
    ["answers as the reference", percent(quality.agreement)],
    ["largest difference", number(quality.max_abs_error, 4)],
    ["difference is", quality.validation ? (quality.validation.significant ? "significant" : "within chance") : null],
  ]} />`;
}

function Size({ variant }) {
  const { size, artifact, cost, live } = variant;
  return html`<${Facts} title="Size and cost" facts=${[
    ["file", bytes(artifact?.bytes)],
    ["parameters", count(size?.parameters)],
    ["not zero", size ? percent(size.nonzero_parameters / size.parameters) : null],
    ["operations, one row", size?.flops ? `${count(size.flops)} FLOP` : null],
    ["bytes moved, one row", bytes(size?.moved_bytes?.total)],
    ["memory when loaded", bytes(variant.profile?.memory_bytes)],
    ["built in", cost ? duration(cost.build_seconds) : null],
    ["now", live ? `${rate(live.rps)}/s, p99 ${ms(live.p99_ms)} ms` : null],
  ]} />`;
}

function Latency({ profile }) {
  if (!profile) return null;
  return html`<section><h3>Latency here</h3><table class="compact">
    <thead><tr><th scope="col">Rows</th><th scope="col">p50 ms</th><th scope="col">p99 ms</th><th scope="col">rows/s</th></tr></thead>
    <tbody>${Object.entries(profile.latency_ms).map(([batch, latency]) => html`<tr><th scope="row">${batch}</th>
      <td>${ms(latency.p50)}</td><td>${ms(latency.p99)}</td><td>${count(profile.throughput_rows_s?.[batch])}</td></tr>`)}</tbody>
  </table></section>`;
}

function Recipe({ variant }) {
  const steps = variant.recipe ?? [];
  return html`<section><h3>Recipe</h3>
    ${steps.length
      ? html`<ol class="steps">${steps.map((step) => html`<li><b>${step.pass}</b>
          <span class="sub">${Object.entries(step.settings ?? {}).map(([k, v]) => `${k} ${JSON.stringify(v)}`).join(", ") || "defaults"}</span></li>`)}</ol>`
      : html`<p class="hint">The model as it was trained.</p>`}
  </section>`;
}

function Classes({ variant }) {
  const lost = (variant.classes?.validation ?? []).filter((c) => c.recall_change < 0).sort((a, b) => a.recall_change - b.recall_change);
  if (!variant.classes?.validation) return null;
  return html`<section><h3>Classes that lose</h3>
    ${lost.length
      ? html`<table class="compact"><thead><tr><th scope="col">Class</th><th scope="col">Recall</th><th scope="col">Change</th></tr></thead>
        <tbody>${lost.slice(0, 6).map((c) => html`<tr><th scope="row">${c.label}</th><td>${percent(c.recall)}</td><td>${number(c.recall_change * 100, 1)} pt</td></tr>`)}</tbody></table>`
      : html`<p class="hint">None: no class is recalled less often than by the reference.</p>`}
  </section>`;
}
