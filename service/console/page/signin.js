// Asks for a key, and trades it for a session that no script can read.
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { post } from "./api.js";
import { begin } from "./events.js";
import { Failure } from "./parts.js";
import { state } from "./state.js";

export function SignIn() {
  const field = useRef(null);
  const [error, setError] = useState("");
  const [isBusy, setBusy] = useState(false);
  useEffect(() => field.current?.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError("");
    try {
      await post("session", { key: field.current.value });
      await begin();
    } catch (failure) {
      setError(failure.message);
      setBusy(false);
      field.current?.select();
    }
  };
  return html`
    <main class="sign-in">
      <form class="panel" onSubmit=${submit}>
        <svg viewBox="0 0 24 24" aria-hidden="true">
          <rect x="2" y="3" width="12" height="18" rx="2" /><rect x="16" y="3" width="6" height="9" rx="1.5" />
          <rect x="16" y="14" width="4" height="4.5" rx="1" />
        </svg>
        <h1>Sign in to Mipgate</h1>
        <p class="hint" id="key-hint">An API key or a token of your identity provider. The page keeps neither.</p>
        <${Failure} text=${error || state.refusal} />
        <label for="key">Key</label>
        <input id="key" ref=${field} type="password" required autocomplete="current-password" spellcheck=${false}
          aria-describedby="key-hint" aria-invalid=${error ? "true" : undefined} />
        <button class="primary" disabled=${isBusy}>${isBusy ? "Signing in" : "Sign in"}</button>
        <p class="hint">Make one on the gateway's machine: <code>mipgate keys create NAME --role operate</code></p>
      </form>
    </main>
  `;
}
