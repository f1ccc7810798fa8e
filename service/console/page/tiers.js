// What callers ask for, and who answers them.
import { html } from "./vendor/preact-htm.js";
import { Sparkline } from "./charts/sparkline.js";
import { ms, percent, rate } from "./format.js";
import { Panel } from "./parts.js";
import { KEPT_S, trail } from "./state.js";

export function Tiers({ model, live }) {
  const order = Object.entries(live?.variants ?? {}).sort((a, b) => b[1].share - a[1].share).map(([name]) => name);
  return html`
    <${Panel} id="tiers" title="Tiers" note="where their traffic goes">
      <table class="tiers">
        <thead><tr>
          <th scope="col">Tier</th><th scope="col" class="figure-cell">Rate</th><th scope="col" class="figure-cell">p50</th>
          <th scope="col" class="figure-cell">p99</th><th scope="col" class="figure-cell">In time</th><th scope="col" class="flow-head">Answered by</th>
        </tr></thead>
        <tbody>
          ${Object.entries(model.tiers).map(([name, tier]) => html`
            <${Tier} key=${name} name=${name} tier=${tier} now=${live?.tiers[name]} model=${model.model} order=${order} />`)}
        </tbody>
      </table>
    <//>
  `;
}

function Tier({ name, tier, now, model, order }) {
  const all = now ? now.ok + now.late + now.rejected + now.failed : 0;
  return html`
    <tr>
      <th scope="row"><span class="tier-name">${name}</span>
        <span class="sub">≥ ${percent(tier.min_quality_ratio)} within ${tier.deadline_ms ?? "–"} ms</span></th>
      <td class="figure-cell"><b>${rate(now?.rps ?? 0)}</b><span class="unit">/s</span>
        <${Sparkline} values=${trail(model, (f) => f.tiers[name]?.rps)} room=${KEPT_S} /></td>
      <td class="figure-cell">${ms(now?.p50_ms)}<span class="unit narrow"> ms p50</span></td>
      <td class="figure-cell">${ms(now?.p99_ms)}<span class="unit narrow"> ms p99</span></td>
      <td class="figure-cell">${all ? percent(now.ok / all) : "–"}<span class="unit narrow"> in time</span>${all && now.ok < all ? html`<span class="sub">${lost(now)}</span>` : ""}</td>
      <td class="flow-cell"><${Flow} tier=${tier} now=${now} order=${order} /></td>
    </tr>
  `;
}

const lost = (now) =>
  ["late", "rejected", "failed"].filter((outcome) => now[outcome]).map((outcome) => `${now[outcome]} ${outcome}`).join(", ");

// A variant has the same shade in every tier: the more traffic it has in all, the darker.
function Flow({ tier, now, order }) {
  const shade = (name) => `share-${Math.min(order.indexOf(name), 4)}`;
  const counts = Object.entries(now?.variants ?? {}).sort((a, b) => b[1] - a[1]);
  const all = counts.reduce((total, [, count]) => total + count, 0);
  if (!all) return html`<span class="sub">idle; would be ${tier.serves ?? "nobody: no variant is good enough"}</span>`;
  return html`
    <span class="flow" aria-hidden="true">
      ${counts.map(([name, count]) => html`<i key=${name} class=${shade(name)} style=${{ flexGrow: count }}></i>`)}
    </span>
    <span class="flow-names">
      ${counts.map(([name, count]) => html`<span key=${name}><i class="swatch ${shade(name)}" aria-hidden="true"></i>${name} ${percent(count / all, 0)} </span>`)}
    </span>
  `;
}
