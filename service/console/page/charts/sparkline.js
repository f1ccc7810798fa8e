// The last minutes of one figure as a line.
import { html } from "../vendor/preact-htm.js";

const WIDTH = 100;
const HEIGHT = 24;
const LEAST = 60; // a line of few samples begins in the middle, and not at the left

export function Sparkline({ values, room }) {
  if (values.length < 2) return html`<svg class="spark" viewBox="0 0 ${WIDTH} ${HEIGHT}" aria-hidden="true"></svg>`;
  const top = Math.max(...values) * 1.1 || 1;
  const step = WIDTH / (Math.min(room, Math.max(LEAST, values.length)) - 1);
  const start = WIDTH - (values.length - 1) * step;
  const points = values.map((v, i) => `${(start + i * step).toFixed(2)},${(HEIGHT - 1 - (v / top) * (HEIGHT - 3)).toFixed(2)}`);
  return html`
    <svg class="spark" viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" aria-hidden="true">
      <polygon points=${`${start.toFixed(2)},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}`} />
      <polyline points=${points.join(" ")} />
    </svg>
  `;
}
