// Every change of a rollout and why, the newest first.
import { html, useEffect, useState } from "../vendor/preact-htm.js";
import { get } from "../api.js";
import { clock, moment, weight } from "../format.js";
import { Failure } from "../parts.js";

export function History({ rollout }) {
  const [isOpen, setOpen] = useState(false);
  const [lines, setLines] = useState([]);
  const [error, setError] = useState("");
  useEffect(() => {
    if (!isOpen) return undefined;
    let isCurrent = true;
    get(`rollouts/${rollout.id}/history`).then(
      (found) => isCurrent && (setLines([...found].reverse()), setError("")),
      (failure) => isCurrent && setError(failure.message),
    );
    return () => { isCurrent = false; };
  }, [isOpen, rollout.id, rollout.version]);
  return html`
    <details class="history" onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>History, ${rollout.version} change${rollout.version === 1 ? "" : "s"}</summary>
      <${Failure} text=${error} />
      <ol>${lines.map((line) => html`
        <li key=${line.version}>
          <time datetime=${new Date(line.at * 1000).toISOString()} title=${moment(line.at)}>${clock(line.at)}</time>
          <span><b class="state ${line.phase}">${line.phase}</b>
            <span class="history-weight">${Object.values(line.weights).map(weight).join(" / ")}</span>
            ${line.who !== "gateway" && html`<span class="note">by ${line.who}</span>`}
            <span class="sub">${line.reason}</span></span>
        </li>`)}</ol>
    </details>
  `;
}
