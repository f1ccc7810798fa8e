// Every variant with its figures: also the frontier's in words.
import { html } from "../vendor/preact-htm.js";
import { Sparkline } from "../charts/sparkline.js";
import { bytes, ms, number, percent, rate } from "../format.js";
import { Panel } from "../parts.js";
import { KEPT_S, trail } from "../state.js";
import { Lives } from "./lives.js";
import { isMetricOfShares } from "./variant.js";

export function VariantsTable({ model, variants, onOpen }) {
  return html`
    <${Panel} id="variants" title="Variants" wide note=${`${variants.length} builds, reference ${model.reference}`}>
      <table class="variants" id="variants-table" tabindex="-1" aria-labelledby="variants">
        <thead><tr>
          <th scope="col">Variant</th>
          <th scope="col" class="state-cell">State</th>
          <th scope="col" class="figure-cell">${model.metric}</th>
          <th scope="col" class="figure-cell roomy">Of reference</th>
          <th scope="col" class="figure-cell">p50, one row</th>
          <th scope="col" class="figure-cell roomy">Size</th>
          <th scope="col" class="figure-cell">Traffic</th>
          <th scope="col" class="figure-cell roomy">Live p99</th>
          <th scope="col" class="figure-cell spacious">Batch</th>
          <th scope="col" class="figure-cell spacious">Waiting</th>
          <th scope="col" class="roomy"><span class="unseen">Change</span></th>
        </tr></thead>
        <tbody>
          ${variants.map((v) => html`<${Row} key=${v.version} model=${model} variant=${v} onOpen=${onOpen} />`)}
        </tbody>
      </table>
    <//>
  `;
}

function Row({ model, variant, onOpen }) {
  const { live } = variant;
  const value = isMetricOfShares(model.metric) ? percent(variant.value, 2) : number(variant.value, 4);
  return html`
    <tr class=${variant.life}>
      <th scope="row">
        <button class="name-button" onClick=${() => onOpen(variant.version)}
          aria-label="Scorecard of ${variant.name}">${variant.name}</button>
        <span class="sub build">${variant.build.slice(0, 8)}</span>
        <span class="state narrow ${variant.life} ${variant.status}">${standing(variant)}</span>
      </th>
      <td class="state-cell"><span class="state ${variant.life} ${variant.status}">${standing(variant)}</span>
        ${variant.reason && html`<span class="sub why roomy">${variant.reason}</span>`}</td>
      <td class="figure-cell">${value}</td>
      <td class="figure-cell roomy">${percent(variant.ratio)}</td>
      <td class="figure-cell">${ms(variant.latency)}<span class="unit"> ms</span></td>
      <td class="figure-cell roomy">${bytes(variant.artifact?.bytes)}</td>
      <td class="figure-cell traffic-cell"><span><b>${rate(variant.rps)}</b><span class="unit">/s</span></span>
        <${Sparkline} values=${trail(model.model, (f) => f.variants[variant.name]?.rps)} room=${KEPT_S} /></td>
      <td class="figure-cell roomy">${ms(live?.p99_ms)}</td>
      <td class="figure-cell spacious">${number(live?.batch_mean ?? null, 1)}</td>
      <td class="figure-cell spacious">${number(live?.queue_depth ?? 0)}</td>
      <td class="change-cell roomy"><${Lives} model=${model} variant=${variant} /></td>
    </tr>
  `;
}

function standing({ life, status }) {
  if (life === "released" && status === "serving") return "serving";
  if (["refused", "failed", "skipped"].includes(status)) return status;
  return life === "released" ? `released, ${status}` : life;
}
