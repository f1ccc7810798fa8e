// The few figures that are read from across the room.
import { html } from "./vendor/preact-htm.js";
import { Sparkline } from "./charts/sparkline.js";
import { ms, number, percent, rate } from "./format.js";
import { KEPT_S, state, trail } from "./state.js";

export function Headline({ model, live, variants }) {
  const name = model.model;
  const tier = busiest(live);
  const kept = state.past.get(name)?.length ?? 0;
  const good = live ? inTime(live.tiers) : null;
  const waiting = live ? sum(live.variants, (v) => v.queue_depth) : null;
  const serving = variants.filter((v) => v.life === "released" && v.status === "serving").length;
  return html`
    <section aria-label="Live figures">
      <dl class="headline">
        <${Figure} label="Requests" unit="/s" value=${rate(live?.requests_per_s)} lead
          trail=${trail(name, (f) => f.rps)} />
        <${Figure} label=${tier ? `p50, ${tier}` : "p50"} unit="ms" value=${ms(live?.tiers[tier]?.p50_ms)}
          trail=${trail(name, (f) => f.tiers[tier]?.p50_ms)} />
        <${Figure} label=${tier ? `p99, ${tier}` : "p99"} unit="ms" value=${ms(live?.tiers[tier]?.p99_ms)}
          state=${lateness(live?.tiers[tier]?.p99_ms, model.tiers[tier]?.deadline_ms)}
          trail=${trail(name, (f) => f.tiers[tier]?.p99_ms)} />
        <${Figure} label="Answered in time" value=${percent(good)} state=${health(good)}
          trail=${trail(name, (f) => inTime(f.tiers) ?? 1)} />
        <${Figure} label="Waiting" value=${number(waiting)} trail=${trail(name, (f) => sum(f.variants, (v) => v.queue_depth))} />
        <${Figure} label="Serving" value=${serving} unit=${` of ${variants.length} variants`} />
      </dl>
      <p class="unseen">Figures are of the last minute over all workers; lines show the last ${KEPT_S / 60} minutes,
        ${kept} seconds of which are known.</p>
    </section>
  `;
}

function Figure({ label, value, unit = "", state: condition = "", trail: values, lead }) {
  return html`
    <div class="figure ${condition} ${lead ? "lead" : ""}">
      <dt>${label}</dt>
      <dd><span class="value">${value}</span>${value !== "–" && html`<span class="unit">${unit}</span>`}</dd>
      ${values && html`<${Sparkline} values=${values} room=${KEPT_S} />`}
    </div>
  `;
}

function busiest(live) {
  const tiers = Object.entries(live?.tiers ?? {}).sort((a, b) => b[1].rps - a[1].rps);
  return tiers[0]?.[0];
}

export function inTime(tiers) {
  const ok = sum(tiers, (t) => t.ok);
  const all = ok + sum(tiers, (t) => t.late + t.rejected + t.failed);
  return all ? ok / all : null;
}

function sum(figures, pick) {
  return Object.values(figures).reduce((total, figure) => total + pick(figure), 0);
}

const health = (share) => (share === null ? "" : share >= 0.999 ? "good" : share >= 0.99 ? "warn" : "bad");

function lateness(p99, deadline) {
  if (!p99 || !deadline) return "";
  return p99 > deadline ? "bad" : p99 > deadline * 0.7 ? "warn" : "";
}
