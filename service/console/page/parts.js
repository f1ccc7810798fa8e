// Small parts that many others use.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact-htm.js";

export function Panel({ id, title, note, action, children, wide }) {
  return html`
    <section class="panel ${wide ? "wide" : ""}" aria-labelledby=${id} >
      <div class="panel-head">
        <h2 id=${id}>${title}</h2>
        ${note && html`<span class="note">${note}</span>`}
        <span class="actions">${action}</span>
      </div>
      ${children}
    </section>
  `;
}

export function Failure({ text }) {
  return html`<div role="alert">${text && html`<p class="failure">${text}</p>`}</div>`;
}

// A modal dialog of the browser's own: it traps and gives back the focus, and closes with Escape.
export function Dialog({ title, onClose, children, size = "" }) {
  const box = useRef(null);
  useLayoutEffect(() => {
    const dialog = box.current;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  const cancel = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`
    <dialog ref=${box} class=${size} aria-labelledby="dialog-title" onCancel=${cancel}
      onClick=${(event) => event.target === box.current && onClose()}>
      <div class="dialog-body">
        <div class="dialog-head">
          <h2 id="dialog-title">${title}</h2>
          <button type="button" class="close" aria-label="Close" onClick=${onClose}>
            <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3.5 3.5l9 9m0-9l-9 9" /></svg>
          </button>
        </div>
        ${children}
      </div>
    </dialog>
  `;
}

// Asks before a change that moves traffic.
export function Confirm({ title, text, verb, kind, act, onClose }) {
  const [submit, isBusy, error] = useAction(act, onClose);
  return html`
    <${Dialog} title=${title} onClose=${onClose} size="small">
      <p>${text}</p>
      <${Failure} text=${error} />
      <div class="buttons">
        <button type="button" onClick=${onClose}>Cancel</button>
        <button type="button" class=${kind} disabled=${isBusy} onClick=${submit}>${verb}</button>
      </div>
    <//>
  `;
}

// Runs an action once at a time; keeps the API's own message when it fails.
export function useAction(act, done) {
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const run = async (...given) => {
    setBusy(true);
    setError("");
    try {
      await act(...given);
      done?.();
    } catch (failure) {
      setError(failure.message);
    }
    setBusy(false);
  };
  return [run, isBusy, error];
}

// The width of an element in pixels, as it changes.
export function useWidth(first = 640) {
  const element = useRef(null);
  const [width, setWidth] = useState(first);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.round(entry.contentRect.width)));
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return [element, width];
}

export function Field({ id, label, hint, children }) {
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      ${children}
      ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
    </div>
  `;
}
