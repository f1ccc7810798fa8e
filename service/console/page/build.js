// The form that asks a builder for a variant, a search or a new measurement.
import { html, useState } from "./vendor/preact-htm.js";
import { post, segment } from "./api.js";
import { Dialog, Failure, Field, useAction } from "./parts.js";
import { say, set, state } from "./state.js";

const OWN = { name: "half", steps: [{ pass: "fp16", settings: {} }] };

export function BuildForm({ model, onClose }) {
  const [kind, setKind] = useState("recipe");
  const [values, setValues] = useState({
    recipe: "", own: JSON.stringify(OWN, null, 2), floor: "0.99", objective: "latency", trials: "20",
  });
  const change = (field) => (event) => setValues({ ...values, [field]: event.target.value });
  const [submit, isBusy, error] = useAction(async (event) => {
    event.preventDefault();
    const job = await post(...wanted(model.model, kind, values));
    state.jobs.set(job.id, job);
    set({});
    say(`A builder was asked for a ${job.kind}.`);
    onClose();
  });
  const kinds = { recipe: "Recipe", own: "Own steps", search: "Search", profile: "Measure again" };
  return html`
    <${Dialog} title=${`Build a variant of ${model.model}`} onClose=${onClose}>
      <form onSubmit=${submit}>
        <fieldset class="segments"><legend>What</legend>
          ${Object.entries(kinds).map(([value, label]) => html`
            <label><input type="radio" name="build-kind" value=${value} checked=${kind === value} onChange=${() => setKind(value)} />
              <span>${label}</span></label>`)}
        </fieldset>
        ${kind === "recipe" && html`
          <${Field} id="recipe" label="Recipe" hint="A recipe of the model's spec. What is unchanged is found in the store and not built again.">
            <input id="recipe" list="recipes" required autocomplete="off" placeholder="int8-static" value=${values.recipe} onInput=${change("recipe")} aria-describedby="recipe-hint" />
          <//>
          <datalist id="recipes">${model.variants.map((v) => html`<option value=${v.name}></option>`)}</datalist>`}
        ${kind === "own" && html`
          <${Field} id="own" label="Recipe, as JSON" hint="A name, and the passes in order with what differs from their defaults.">
            <textarea id="own" rows="8" spellcheck=${false} required value=${values.own} onInput=${change("own")} aria-describedby="own-hint"></textarea>
          <//>`}
        ${kind === "search" && html`
          <div class="pair">
            <${Field} id="floor" label="Quality of the reference, at least">
              <input id="floor" type="number" step="any" min="0" max="1.5" required value=${values.floor} onInput=${change("floor")} /><//>
            <${Field} id="objective" label="Make smallest">
              <select id="objective" value=${values.objective} onChange=${change("objective")}><option>latency</option><option>size</option></select><//>
            <${Field} id="trials" label="Trials">
              <input id="trials" type="number" min="1" max="1000" required value=${values.trials} onInput=${change("trials")} /><//>
          </div>`}
        ${kind === "profile" && html`<p class="hint">Measures every variant again on the builder's host. Do it when the host is quiet.</p>`}
        <${Failure} text=${error} />
        <div class="buttons">
          <button type="button" onClick=${onClose}>Cancel</button>
          <button class="primary" disabled=${isBusy}>Ask a builder</button>
        </div>
      </form>
    <//>
  `;
}

function wanted(model, kind, values) {
  const path = `models/${segment(model)}`;
  if (kind === "recipe") return [`${path}/builds`, { recipe: values.recipe.trim() }];
  if (kind === "own") return [`${path}/builds`, readJson(values.own)];
  if (kind === "profile") return [`${path}/profile`, {}];
  return [`${path}/searches`, { min_accuracy: Number(values.floor), objective: values.objective, trials: Number(values.trials) }];
}

function readJson(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The recipe is no JSON: ${error.message}. Change it.`);
  }
}
