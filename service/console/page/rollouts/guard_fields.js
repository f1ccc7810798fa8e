// Guards as a list of lines that can be changed, added and taken away.
import { html } from "../vendor/preact-htm.js";

export function GuardFields({ guards, onChange }) {
  const change = (place, text) => onChange(guards.map((guard, i) => (i === place ? text : guard)));
  return html`
    <fieldset class="guard-fields"><legend>Guards</legend>
      ${guards.map((guard, i) => html`
        <div key=${i} class="guard-field">
          <input value=${guard} aria-label="Guard ${i + 1}" spellcheck=${false} aria-describedby="guards-hint"
            onInput=${(event) => change(i, event.target.value)} />
          <button type="button" class="quiet" aria-label="Take guard ${i + 1} away"
            onClick=${() => onChange(guards.filter((_, place) => place !== i))}>Remove</button>
        </div>`)}
      <button type="button" class="quiet" onClick=${() => onChange([...guards, ""])}>Add a guard</button>
      <p class="hint" id="guards-hint">Statistic, ${"<="} or ${">="}, threshold; then, if wanted, @confidence% and ,n=samples. ${" "}
        For example ${" "}<code>${"p99<=1.2x"}</code> or ${" "}<code>${"accuracy>=-0.5pt@99%,n=500"}</code>.</p>
    </fieldset>
  `;
}
