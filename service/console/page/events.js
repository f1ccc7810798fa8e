// Follows the gateway: who is signed in, and every document that changes.
import { address, ApiError, get } from "./api.js";
import { changed, sample, set, state } from "./state.js";

const AGAIN_MS = 3000;
const QUIET_MS = 25_000; // the gateway sends at least a comment every 15 s; figures are told each second under load
let source = null;
let waiting = null;

export async function begin() {
  clearTimeout(waiting);
  try {
    set({ session: await get("session"), refusal: "" });
    follow();
  } catch (error) {
    if (error instanceof ApiError && (error.status === 401 || error.status === 403)) {
      stop();
      set({ session: null, refusal: error.status === 403 ? error.message : "" });
    } else {
      set({ link: "lost", refusal: error.message });
      waiting = setTimeout(begin, AGAIN_MS);
    }
  }
}

export function stop() {
  clearTimeout(waiting);
  source?.close();
  source = null;
}

function follow() {
  stop();
  source = new EventSource(address("events"));
  source.onopen = () => set({ link: "live", heard: Date.now() });
  source.onerror = () => {
    set({ link: "lost" });
    if (source?.readyState === EventSource.CLOSED) waiting = setTimeout(begin, AGAIN_MS); // revoked, or stopped
  };
  listen("model", (model) => state.models.set(model.model, model));
  listen("live", (live) => state.live.set(live.model, live));
  listen("rollout", (rollout) => state.rollouts.set(rollout.id, rollout));
  listen("job", (job) => state.jobs.set(job.id, job));
}

function listen(name, keep) {
  source.addEventListener(name, (event) => {
    keep(JSON.parse(event.data));
    state.heard = Date.now();
    state.link = "live";
    changed();
  });
}

setInterval(() => {
  if (state.link === "live") sample();
  changed();
}, 1000);
addEventListener("online", begin);
document.addEventListener("visibilitychange", () => {
  const isStale = Date.now() - state.heard > QUIET_MS && state.link === "lost";
  if (!document.hidden && state.session && isStale) begin();
});
