// What must hold, and how sure it is: each guard's interval drawn against its threshold.
import { html } from "../vendor/preact-htm.js";
import { number, recipeOf } from "../format.js";

const MARKS = { passes: "✓", fails: "✕", undecided: "…" };
const WORDS = { passes: "passes", fails: "fails", undecided: "undecided" };

export function Guards({ rollout }) {
  const { guards } = rollout;
  if (!guards.length) return html`<p class="hint">No guards: an operator decides. The failure budget still holds.</p>`;
  const several = rollout.arms.length > 2;
  return html`
    <ul class="guards" aria-label="Guards">
      ${guards.map((guard) => html`
        <li key=${guard.text + guard.arm} class=${guard.verdict}>
          <span class="mark" aria-hidden="true">${MARKS[guard.verdict]}</span>
          <span class="guard-text">${guard.text.split("@")[0]}${several ? ` · ${variantOf(rollout, guard.arm)}` : ""}
            <span class="unseen">${WORDS[guard.verdict]}</span></span>
          <span class="guard-figure">${guard.estimate === null ? "–" : shown(guard, guard.estimate)}</span>
          ${guard.estimate === null ? html`<${Awaited} guard=${guard} />` : html`<${Interval} guard=${guard} />`}
          <span class="sub guard-sentence">${guard.sentence}</span>
        </li>`)}
    </ul>
  `;
}

const variantOf = (rollout, arm) => recipeOf(rollout.arms.find((a) => a.name === arm)?.variant ?? arm);

function Awaited({ guard }) {
  const [, has, needs] = guard.sentence.match(/(\d+) of (\d+) samples/) ?? [null, guard.samples, guard.samples];
  return html`<progress class="awaited" max=${needs} value=${has} aria-label="samples of ${guard.text}"></progress>`;
}

function Interval({ guard }) {
  const { estimate, threshold } = guard;
  const isFloor = guard.text.includes(">=");
  const [from, to] = room(guard);
  const at = (value) => Math.min(100, Math.max(0, ((value - from) / (to - from)) * 100));
  const low = guard.low === null ? 0 : at(guard.low);
  const high = guard.high === null ? 100 : at(guard.high);
  const bad = isFloor ? [0, at(threshold)] : [at(threshold), 100];
  return html`
    <svg class="interval" viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label=${guard.sentence}>
      <rect class="bad-side" x=${bad[0]} width=${Math.max(0, bad[1] - bad[0])} y="1" height="14" />
      <line class="base" x1="0" x2="100" y1="8" y2="8" />
      <rect class="span" x=${low} width=${Math.max(0.8, high - low)} y="5" height="6" rx="1" />
      <line class="estimate" x1=${at(estimate)} x2=${at(estimate)} y1="3" y2="13" />
      <line class="threshold" x1=${at(threshold)} x2=${at(threshold)} y1="0" y2="16" />
    </svg>
  `;
}

// The range that is drawn: the threshold in it, and both ends where they are known.
function room(guard) {
  const ends = [guard.low, guard.high, guard.estimate, guard.threshold].filter((end) => end !== null);
  const far = Math.max(...ends.map((end) => Math.abs(end - guard.threshold)), Math.abs(guard.threshold) * 0.005, 1e-6);
  const reach = Math.min(far, spread(guard)) * 1.15;
  return [guard.threshold - reach, guard.threshold + reach];
}

// Intervals begin very wide: beyond this they are cut off.
function spread(guard) {
  if (guard.relation === "ratio") return Math.max(1, guard.threshold);
  return Math.max(Math.abs(guard.threshold) * 3, 0.02);
}

export function shown(guard, value) {
  if (guard.relation === "ratio") return `${number(value, 2)}×`;
  if (guard.relation === "difference") return `${value > 0 ? "+" : ""}${number(value * 100, 2)} pt`;
  if (/^p\d/.test(guard.statistic)) return `${number(value * 1000, 2)} ms`;
  if (guard.statistic === "errors" || guard.statistic === "misses") return `${number(value * 100, 2)}%`;
  if (guard.statistic === "agreement" || guard.statistic === "accuracy") return `${number(value * 100, 2)}%`;
  return number(value, 4);
}
