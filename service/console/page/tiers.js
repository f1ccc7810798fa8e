// What callers ask for, and who answers them.
import { html } from "./vendor/preact-htm.js";
import { Sparkline } from "./charts/sparkline.js";
import { ms, percent, rate } from "./format.js";
import { Panel } from "./parts.js";
import { KEPT_S, trail } from "./state.js";

export function Tiers({ model, live }) {
  return html`
    <${Panel} id="tiers" title="Tiers" note="where their traffic goes">
      <table class="tiers">
        <thead><tr>
          <th scope="col">Tier</th><th scope="col" class="figure-cell">Rate</th><th scope="col" class="figure-cell">p50</th>
          <th scope="col" class="figure-cell">p99</th><th scope="col" class="figure-cell">In time</th><th scope="col" class="flow-head">Answered by</th>
        </tr></thead>
        <tbody>
          ${Object.entries(model.tiers).map(([name, tier]) => html`
            <${Tier} key=${name} name=${name} tier=${tier} now=${live?.tiers[name]} model=${model.model} />`)}
        </tbody>
      </table>
    <//>
  `;
}

function Tier({ name, tier, now, model }) {
  const all = now ? now.ok + now.late + now.rejected + now.failed : 0;
  return html`
    <tr>
      <th scope="row"><span class="tier-name">${name}</span>
        <span class="sub">≥ ${percent(tier.min_quality_ratio)} within ${tier.deadline_ms ?? "–"} ms</span></th>
      <td class="figure-cell"><b>${rate(now?.rps ?? 0)}</b><span class="unit">/s</span>
        <${Sparkline} values=${trail(model, (f) => f.tiers[name]?.rps)} room=${KEPT_S} /></td>
      <td class="figure-cell">${ms(now?.p50_ms)}</td>
      <td class="figure-cell">${ms(now?.p99_ms)}</td>
      <td class="figure-cell">${all ? percent(now.ok / all) : "–"}${all && now.ok < all ? html`<span class="sub">${lost(now)}</span>` : ""}</td>
      <td class="flow-cell"><${Flow} tier=${tier} now=${now} /></td>
    </tr>
  `;
}

const lost = (now) =>
  ["late", "rejected", "failed"].filter((outcome) => now[outcome]).map((outcome) => `${now[outcome]} ${outcome}`).join(", ");

function Flow({ tier, now }) {
  const counts = Object.entries(now?.variants ?? {}).sort((a, b) => b[1] - a[1]);
  const all = counts.reduce((total, [, count]) => total + count, 0);
  if (!all) return html`<span class="sub">idle; would be ${tier.serves ?? "nobody: no variant is good enough"}</span>`;
  return html`
    <span class="flow" aria-hidden="true">
      ${counts.map(([name, count], i) => html`<i key=${name} class="share-${Math.min(i, 4)}" style=${{ flexGrow: count }}></i>`)}
    </span>
    <span class="flow-names">
      ${counts.map(([name, count], i) => html`<span key=${name}><i class="swatch share-${Math.min(i, 4)}" aria-hidden="true"></i>${name} ${percent(count / all, 0)} </span>`)}
    </span>
  `;
}
