// What was seen of each arm.
import { html } from "../vendor/preact-htm.js";
import { count, ms, number, percent, recipeOf } from "../format.js";

const share = (part) => (e) => (e.requests ? percent(e[part] / e.requests, e[part] ? 2 : 0) : "–");
const ROWS = [
  ["requests", (e) => count(e.requests)],
  ["errors", (e) => (e.requests ? percent((e.errors + e.timeouts + e.non_finite) / e.requests, e.errors + e.timeouts + e.non_finite ? 2 : 0) : "–")],
  ["missed deadlines", share("misses")],
  ["p50 ms", (e) => ms(e.p50_ms)],
  ["p99 ms", (e) => ms(e.p99_ms)],
  ["copies compared", (e) => (e.compared ? count(e.compared) : null)],
  ["agreement", (e) => (e.agreement === null ? null : percent(e.agreement, 2))],
  ["cosine", (e) => (e.cosine === null ? null : number(e.cosine, 4))],
  ["labels", (e) => (e.labelled ? count(e.labelled) : null)],
  ["accuracy", (e) => (e.accuracy === null ? null : percent(e.accuracy, 2))],
  ["loss", (e) => (e.loss === null ? null : number(e.loss, 4))],
];

export function Evidence({ rollout }) {
  const rows = ROWS.map(([name, tell]) => [name, rollout.arms.map((arm) => tell(arm.evidence))]).filter(
    ([, told]) => told.some((value) => value !== null),
  );
  return html`
    <table class="compact evidence">
      <caption class="unseen">Evidence of each arm</caption>
      <thead><tr><td></td>${rollout.arms.map((arm) => html`<th scope="col" title=${arm.variant}>${recipeOf(arm.variant)}</th>`)}</tr></thead>
      <tbody>${rows.map(([name, told]) => html`<tr key=${name}><th scope="row">${name}</th>
        ${told.map((value) => html`<td>${value ?? "–"}</td>`)}</tr>`)}</tbody>
    </table>
  `;
}
