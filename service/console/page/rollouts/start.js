// The form that starts a rollout.
import { html, useState } from "../vendor/preact-htm.js";
import { post, segment } from "../api.js";
import { Dialog, Failure, Field, useAction } from "../parts.js";
import { say, set, state } from "../state.js";
import { body, guardsFor, KINDS } from "./defaults.js";
import { GuardFields } from "./guard_fields.js";

const FIRST = {
  primary: "", tier: "", steps: "5, 25, 50, 100", weight: "50", fraction: "10", reward: "in_time",
  stepDuration: "60", failure: "keep", minutes: "60",
};

export function StartForm({ model, variants, onClose }) {
  const able = variants.filter((v) => v.life !== "retired" && v.runtime).sort((a, b) => isCandidate(b) - isCandidate(a));
  const isOfClasses = Boolean(able[0]?.classes?.validation);
  const usual = likely(model, able);
  const [kind, setKind] = useState("canary");
  const [values, setValues] = useState({
    ...FIRST, candidates: usual ? [usual.version] : [], guards: guardsFor("canary", usual, isOfClasses),
  });
  const [isEdited, setEdited] = useState(false);
  const put = (field, value) => setValues({ ...values, [field]: value });
  const typed = (field) => (event) => put(field, event.target.value);
  const refill = (newKind, candidates) => {
    const first = able.find((v) => v.version === candidates[0]);
    const guards = isEdited ? values.guards : guardsFor(newKind, first, isOfClasses);
    setKind(newKind);
    setValues({ ...values, candidates, guards });
  };
  const editGuards = (guards) => {
    setEdited(true);
    put("guards", guards);
  };
  const [submit, isBusy, error] = useAction(async (event) => {
    event.preventDefault();
    const rollout = await post(`models/${segment(model.model)}/rollouts`, body(kind, values));
    state.rollouts.set(rollout.id, rollout);
    set({});
    say([`The ${rollout.kind} has begun.`, ...rollout.notes].join(" "));
    onClose();
  });
  const allowsSeveral = kind === "shadow" || kind === "bandit";
  return html`
    <${Dialog} title=${`Start a rollout of ${model.model}`} onClose=${onClose}>
      <form onSubmit=${submit}>
        <fieldset class="segments"><legend>Kind</legend>
          ${Object.entries(KINDS).map(([value, [label]]) => html`
            <label><input type="radio" name="kind" value=${value} checked=${kind === value}
              onChange=${() => refill(value, values.candidates.slice(0, value === "shadow" || value === "bandit" ? 8 : 1))} />
              <span>${label}</span></label>`)}
        </fieldset>
        <p class="hint">${KINDS[kind][1]}</p>
        <div class="pair">
          <${Field} id="primary" label="Primary">
            <select id="primary" value=${values.primary} onChange=${typed("primary")}>
              <option value="">what the router chooses</option>
              ${able.map((v) => html`<${VariantOption} variant=${v} />`)}
            </select><//>
          <${Candidates} able=${able} chosen=${values.candidates} several=${allowsSeveral} onChange=${(c) => refill(kind, c)} />
        </div>
        <${Field} id="tier" label="Requests">
          <select id="tier" value=${values.tier} onChange=${typed("tier")}>
            <option value="">of all tiers</option>
            ${Object.keys(model.tiers).map((t) => html`<option value=${t}>of tier ${t}</option>`)}
          </select><//>
        <${Shape} kind=${kind} values=${values} typed=${typed} />
        <${GuardFields} guards=${values.guards} onChange=${editGuards} />
        <div class="pair">
          <${Field} id="failure" label="A candidate that fails">
            <select id="failure" value=${values.failure} onChange=${typed("failure")}>
              <option value="keep">is left as it is</option><option value="retire">is retired</option>
            </select><//>
          <${Field} id="minutes" label="Inconclusive after, minutes">
            <input id="minutes" type="number" min="1" max="43200" required value=${values.minutes} onInput=${typed("minutes")} /><//>
        </div>
        <${Failure} text=${error} />
        <div class="buttons">
          <button type="button" onClick=${onClose}>Cancel</button>
          <button class="primary" disabled=${isBusy || !values.candidates.length}>Start</button>
        </div>
      </form>
    <//>
  `;
}

function VariantOption({ variant }) {
  return html`<option value=${variant.version}>${variant.name} (${variant.life}, ${variant.build.slice(0, 8)})</option>`;
}

const isCandidate = (variant) => variant.life === "candidate";

// A candidate if there is one, else the fastest that no tier is served by already.
function likely(model, able) {
  const serving = new Set(Object.values(model.tiers).map((tier) => tier.serves));
  const others = able.filter((v) => !serving.has(v.name) && v.name !== model.reference).sort((a, b) => a.latency - b.latency);
  return able.find(isCandidate) ?? others[0] ?? able[0];
}

function Candidates({ able, chosen, several, onChange }) {
  if (!several) {
    return html`
      <${Field} id="candidate" label="Candidate">
        <select id="candidate" value=${chosen[0]} onChange=${(event) => onChange([event.target.value])}>
          ${able.map((v) => html`<${VariantOption} variant=${v} />`)}
        </select><//>`;
  }
  const toggle = (version) => onChange(chosen.includes(version) ? chosen.filter((v) => v !== version) : [...chosen, version]);
  return html`
    <fieldset class="checks"><legend>Candidates</legend>
      ${able.map((v) => html`<label><input type="checkbox" checked=${chosen.includes(v.version)} onChange=${() => toggle(v.version)} />
        <span>${v.name} <small>${v.life}</small></span></label>`)}
    </fieldset>`;
}

function Shape({ kind, values, typed }) {
  const duration = html`
    <${Field} id="step-duration" label=${kind === "bandit" ? "Share anew every, seconds" : "Each step at least, seconds"}>
      <input id="step-duration" type="number" min="1" step="any" required value=${values.stepDuration} onInput=${typed("stepDuration")} /><//>`;
  if (kind === "canary") {
    return html`<div class="pair">
      <${Field} id="steps" label="Steps, percent">
        <input id="steps" required inputmode="decimal" pattern="[0-9., %]+" value=${values.steps} onInput=${typed("steps")} /><//>
      ${duration}</div>`;
  }
  if (kind === "ab") {
    return html`<${Field} id="weight" label="Weight of the candidate, percent">
      <input id="weight" type="number" min="0.1" max="100" step="any" required value=${values.weight} onInput=${typed("weight")} /><//>`;
  }
  if (kind === "shadow") {
    return html`<${Field} id="fraction" label="Copy this share of the requests, percent">
      <input id="fraction" type="number" min="0.1" max="100" step="any" required value=${values.fraction} onInput=${typed("fraction")} /><//>`;
  }
  return html`<div class="pair">
    <${Field} id="reward" label="Reward" hint="accuracy, in_time, or within 20ms">
      <input id="reward" required value=${values.reward} onInput=${typed("reward")} aria-describedby="reward-hint" /><//>
    ${duration}</div>`;
}
