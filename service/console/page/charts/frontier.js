// Quality against latency; the area of a dot is the variant's size, its colour the traffic that it gets now.
import { html } from "../vendor/preact-htm.js";
import { bytes, ms, percent, rate } from "../format.js";
import { Panel, useWidth } from "../parts.js";
import { place } from "./labels.js";
import { linear, logarithmic, logTicks, ticks } from "./scales.js";

const HEAT = [0.005, 0.1, 0.3, 0.6]; // shares of the traffic from which a dot is darker
const LARGEST = 24; // pixels
const SMALLEST = 5;

export function Frontier({ model, variants, onOpen }) {
  const [box, width] = useWidth();
  const known = variants.filter((v) => v.latency && v.ratio !== null && v.life !== "retired");
  const missing = variants.filter((v) => v.life !== "retired" && !known.includes(v));
  return html`
    <${Panel} id="frontier" title="Frontier" note=${`quality against latency on ${model.host.cpu}`}
      action=${html`<a class="jump" href="#variants" onClick=${toTable}>As a table</a>`}>
      <div ref=${box} class="frontier">
        ${known.length
          ? html`<${Chart} model=${model} variants=${known} width=${width} onOpen=${onOpen} />`
          : html`<p class="empty">No variant is measured on this host. Run <code>mipgate profile ${model.model}</code>.</p>`}
      </div>
      <${Legend} />
      ${missing.length > 0 && html`<p class="hint">Not measured here: ${missing.map((v) => v.name).join(", ")}</p>`}
    <//>
  `;
}

function toTable(event) {
  event.preventDefault();
  const table = document.getElementById("variants-table");
  table.focus();
  table.scrollIntoView({ block: "start", behavior: "smooth" });
}

function Chart({ model, variants, width, onOpen }) {
  const isNarrow = width < 480;
  const height = isNarrow ? 300 : width > 700 ? 420 : 360;
  const area = { left: 54, right: width - 14, top: 14, bottom: height - 40 };
  const floors = Object.entries(model.tiers).map(([name, tier]) => ({ name, ratio: tier.min_quality_ratio }));
  const x = axisX(variants, area);
  const y = axisY(variants, floors, area);
  const largest = Math.max(...variants.map((v) => v.artifact.bytes));
  const dots = variants.map((variant) => ({
    variant,
    x: x.at(variant.latency),
    y: y.at(variant.ratio),
    r: Math.max(SMALLEST, LARGEST * (isNarrow ? 0.75 : 1) * Math.sqrt(variant.artifact.bytes / largest)),
    text: variant.name,
  }));
  const shownFloors = floors.filter((f) => y.has(f.ratio));
  const line = staircase(dots, area);
  const labelled = place(dots, area, [...line.boxes, ...shownFloors.map((f) => floorBox(y.at(f.ratio), area))]);
  const drawn = [...labelled].sort((a, b) => b.r - a.r);
  return html`
    <svg width=${width} height=${height} viewBox="0 0 ${width} ${height}" role="group"
      aria-label="Frontier: quality against latency, one dot for each variant. The table of variants has the same figures.">
      <g class="grid" aria-hidden="true">
        ${y.ticks.map((t) => html`<line x1=${area.left} x2=${area.right} y1=${y.at(t)} y2=${y.at(t)} />
          <text x=${area.left - 8} y=${y.at(t) + 4} text-anchor="end">${percent(t, y.places)}</text>`)}
        ${x.ticks.map((t) => html`<line x1=${x.at(t)} x2=${x.at(t)} y1=${area.top} y2=${area.bottom} />
          <text x=${x.at(t)} y=${area.bottom + 17} text-anchor="middle">${+t.toPrecision(2)}</text>`)}
        <text class="axis" x=${area.right} y=${height - 6} text-anchor="end">p50 of one row, ms (log)</text>
        <text class="axis" x="0" y=${height - 6}>share of ${model.reference}'s quality</text>
      </g>
      <g class="floors" aria-hidden="true">
        ${shownFloors.map((f) => html`
          <line x1=${area.left} x2=${area.right} y1=${y.at(f.ratio)} y2=${y.at(f.ratio)} />`)}
      </g>
      <path class="frontier-line" d=${line.path} aria-hidden="true" />
      ${drawn.map((dot) => html`<${Dot} key=${dot.variant.version} dot=${dot} onOpen=${onOpen} />`)}
      <g class="floors" aria-hidden="true">
        ${shownFloors.map((f) => html`<text x=${area.right} y=${y.at(f.ratio) + 14} text-anchor="end">${f.name} ≥ ${percent(f.ratio)}</text>`)}
      </g>
      <g class="labels" aria-hidden="true">
        ${labelled.map(({ label, variant }) => label && html`
          ${label.leader && html`<line class="leader" x1=${label.leader[0]} y1=${label.leader[1]} x2=${label.leader[2]} y2=${label.leader[3]} />`}
          <text x=${label.x} y=${label.y} text-anchor=${label.anchor} class=${variant.share > HEAT[0] ? "busy" : ""}>
            ${label.text}${variant.share > HEAT[0] ? ` ${percent(variant.share, 0)}` : ""}</text>`)}
      </g>
    </svg>
  `;
}

function Dot({ dot, onOpen }) {
  const { variant } = dot;
  const told = `${variant.name}: ${percent(variant.ratio)} of the reference's quality, ${ms(variant.latency)} ms, ` +
    `${bytes(variant.artifact.bytes)}, ${percent(variant.share)} of the traffic, ${rate(variant.rps)} requests per second, ${variant.life}`;
  const open = () => onOpen(variant.version);
  const byKey = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open();
  };
  return html`
    <g class="dot-mark heat-${heat(variant.share)} ${variant.life} ${variant.status}" role="button" tabindex="0"
      aria-label=${told} onClick=${open} onKeyDown=${byKey}>
      <title>${told}</title>
      <circle cx=${dot.x} cy=${dot.y} r=${dot.r} />
      <circle class="core" cx=${dot.x} cy=${dot.y} r="1.5" />
    </g>
  `;
}

const heat = (share) => HEAT.filter((from) => share >= from).length;

function axisX(variants, area) {
  const values = variants.map((v) => v.latency);
  const domain = [Math.min(...values) / 1.35, Math.max(...values) * 1.35];
  return { at: logarithmic(domain, [area.left, area.right]), ticks: logTicks(domain) };
}

function axisY(variants, floors, area) {
  const values = variants.map((v) => v.ratio);
  const lowest = Math.min(...values);
  const near = floors.map((f) => f.ratio).filter((r) => r > lowest - 0.015);
  const from = Math.min(lowest, ...near);
  const to = Math.max(1, ...values);
  const pad = Math.max(0.0015, (to - from) * 0.16);
  const domain = [from - pad, to + pad * 1.2];
  const found = ticks(domain, 5).filter((t) => t <= to + pad);
  const places = domain[1] - domain[0] < 0.012 ? 2 : domain[1] - domain[0] < 0.06 ? 1 : 0;
  const at = linear(domain, [area.bottom, area.top]);
  return { at, ticks: found, places, has: (value) => value >= domain[0] && value <= domain[1] };
}

// What a floor's own name covers.
const floorBox = (y, area) => ({ left: area.right - 118, right: area.right, top: y, bottom: y + 18 });

// The best quality that is to be had within each latency, as steps, and what they cover.
function staircase(dots, area) {
  const standing = dots.filter((d) => d.variant.life === "released").sort((a, b) => a.x - b.x || a.y - b.y);
  const boxes = [];
  let last = null;
  let path = "";
  for (const { x, y } of standing) {
    if (last && y >= last.y) continue;
    path += path ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `M${x.toFixed(1)},${area.bottom}V${y.toFixed(1)}`;
    boxes.push({ left: x, right: x, top: y, bottom: last?.y ?? area.bottom });
    if (last) boxes.push({ left: last.x, right: x, top: last.y, bottom: last.y });
    last = { x, y };
  }
  if (last) boxes.push({ left: last.x, right: area.right, top: last.y, bottom: last.y });
  return { path: path && `${path}H${area.right}`, boxes };
}

function Legend() {
  return html`
    <p class="legend">
      <span>Traffic</span>
      <span class="swatches" aria-hidden="true">
        ${[0, ...HEAT].map((from, i) => html`<i class="swatch heat-${i}"></i>`)}
      </span>
      <span>none to most</span>
      <span class="gap"></span>
      <i class="swatch ring" aria-hidden="true"></i><span>candidate</span>
      <i class="swatch area" aria-hidden="true"></i><span>area is size</span>
    </p>
  `;
}
