// Follows the gateway: who is signed in, and every document that changes.
import { address, ApiError, get } from "./api.js";
import { changed, sample, set, state } from "./state.js";

const AGAIN_MS = 3000;
const QUIET_MS = 20_000; // figures come each second, as their window moves on
let source = null;
let waiting = null;
let tried = 0;

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
  tried = Date.now();
  source = new EventSource(address("events"));
  source.onopen = () => set({ link: "live", heard: Date.now() });
  source.onerror = () => {
    set({ link: "lost" });
    if (source?.readyState === EventSource.CLOSED) waiting = setTimeout(begin, AGAIN_MS / 3); // revoked, or stopped
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
  if (source && Date.now() - Math.max(state.heard, tried) > QUIET_MS) follow(); // a connection may die without a word
  changed();
}, 1000);
addEventListener("online", begin);
