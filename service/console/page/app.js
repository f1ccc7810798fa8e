// The frame: header, models, and what is shown below them.
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { call } from "./api.js";
import { stop } from "./events.js";
import { clock, rate } from "./format.js";
import { ModelPage } from "./model.js";
import { SignIn } from "./signin.js";
import { isEnded, rolloutsOf, say, set, state, useStore } from "./state.js";

export function App() {
  const { session, link, models, message } = useStore();
  const chosen = useChosen(models);
  useEffect(() => nameTab(chosen));
  if (session === null) return html`<${SignIn} />`;
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the figures</a>
    <${Header} chosen=${chosen} />
    ${link === "lost" && html`<${Lost} />`}
    <main id="main" tabindex="-1" class=${link === "lost" ? "stale" : ""}>
      ${session === undefined || (!models.size && link !== "live")
        ? html`<p class="loading">${link === "lost" ? "Waiting for the gateway." : "Asking the gateway."}</p>`
        : models.size
          ? html`<${ModelPage} key=${chosen} name=${chosen} />`
          : html`<${NoModels} />`}
    </main>
    <div class="toasts" role="status" aria-live="polite">
      ${message && html`<p class="toast ${message.kind}">${message.text}</p>`}
    </div>
  `;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

// The model that the address names, else the first.
function useChosen(models) {
  const read = () => decodeURIComponent(location.hash.replace(/^#\/?/, ""));
  const [named, setNamed] = useState(read);
  useEffect(() => {
    const follow = () => setNamed(read());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return models.has(named) ? named : ([...models.keys()][0] ?? "");
}

function nameTab(model) {
  const rollout = rolloutsOf(model).find((r) => !isEnded(r));
  const title = rollout ? `${rollout.phase} · ${model} · Mipgate` : model ? `${model} · Mipgate` : "Mipgate";
  if (document.title !== title) document.title = title;
}

function Header({ chosen }) {
  const { models } = state;
  return html`
    <header class="top">
      <a class="brand" href="#/" aria-label="Mipgate console">
        <svg viewBox="0 0 24 24" aria-hidden="true">
          <rect x="2" y="3" width="12" height="18" rx="2" /><rect x="16" y="3" width="6" height="9" rx="1.5" />
          <rect x="16" y="14" width="4" height="4.5" rx="1" />
        </svg>
        <span>Mipgate</span>
      </a>
      <nav aria-label="Models">
        ${[...models.keys()].map((name) => html`<${Tab} key=${name} name=${name} isChosen=${name === chosen} />`)}
      </nav>
      <${Link} />
      <${Who} />
    </header>
  `;
}

function Tab({ name, isChosen }) {
  const running = rolloutsOf(name).some((r) => !isEnded(r));
  const rps = state.live.get(name)?.requests_per_s;
  return html`
    <a href=${`#/${encodeURIComponent(name)}`} aria-current=${isChosen ? "page" : undefined}>
      ${name}
      ${rps !== undefined && html`<span class="count">${rate(rps)}<span class="unit">/s</span></span>`}
      ${running && html`<span class="dot busy" role="img" aria-label="a rollout is running"></span>`}
    </a>
  `;
}

function Link() {
  const words = { live: "Live", lost: "Connection lost", connecting: "Connecting" };
  return html`<span class="link ${state.link}"><span class="dot"></span>${words[state.link]}</span>`;
}

function Who() {
  const { session } = state;
  if (!session) return null;
  const leave = async () => {
    try {
      await call("DELETE", "session");
    } catch (error) {
      say(error.message, "bad");
      return;
    }
    stop();
    set({ session: null, refusal: "", models: new Map(), live: new Map(), rollouts: new Map(), jobs: new Map() });
  };
  const name = session.who.replace(/^(session|key) /, "").replace(/ \([^)]*\)$/, "");
  return html`
    <span class="who">
      <span class="name" title=${session.who}>${name.replace(/^(session|key) /, "").replace(/ \([^)]*\)$/, "")}</span>
      <span class="chip">${session.role}</span>
      ${session.needs_key && html`<button class="quiet" onClick=${leave}>Sign out</button>`}
    </span>
  `;
}

function Lost() {
  const since = state.heard ? `Figures are from ${clock(state.heard / 1000)}.` : "Nothing was heard yet.";
  return html`<p class="banner" role="alert">The connection to the gateway is lost. ${since} Trying again.</p>`;
}

function NoModels() {
  return html`
    <section class="panel empty big">
      <h1>No model is registered</h1>
      <p>Build one beside the gateway; it appears here as soon as it is published.</p>
      <pre><code>mipgate build digits</code></pre>
    </section>
  `;
}
