// One model: its figures now, its frontier, its rollout, its tiers, jobs and variants.
import { html, useState } from "./vendor/preact-htm.js";
import { Frontier } from "./charts/frontier.js";
import { Headline } from "./headline.js";
import { Jobs } from "./jobs.js";
import { RolloutPanel } from "./rollouts/panel.js";
import { state } from "./state.js";
import { Tiers } from "./tiers.js";
import { Scorecard } from "./variants/scorecard.js";
import { VariantsTable } from "./variants/table.js";
import { joined } from "./variants/variant.js";

export function ModelPage({ name }) {
  const [opened, setOpened] = useState(null);
  const model = state.models.get(name);
  const live = state.live.get(name);
  const variants = joined(model, live);
  const shown = variants.find((variant) => variant.version === opened);
  return html`
    <h1 class="unseen">${name}</h1>
    <${Headline} model=${model} live=${live} variants=${variants} />
    <div class="columns">
      <div class="column">
        <${Frontier} model=${model} variants=${variants} onOpen=${setOpened} />
        <${Tiers} model=${model} live=${live} />
      </div>
      <div class="column">
        <${RolloutPanel} model=${model} variants=${variants} />
        <${Jobs} model=${model} />
      </div>
    </div>
    <${VariantsTable} model=${model} variants=${variants} onOpen=${setOpened} />
    ${shown && html`<${Scorecard} model=${model} variant=${shown} onClose=${() => setOpened(null)} />`}
  `;
}
