// What the page knows, and who draws it again when it changes.
import { useEffect, useState } from "./vendor/preact-htm.js";

export const KEPT_S = 300; // seconds of live figures that sparklines show

export const state = {
  session: undefined, // undefined: not asked yet; null: none
  refusal: "", // why there is none
  link: "connecting", // or "live", "lost"
  heard: 0, // when the gateway last told anything
  models: new Map(),
  live: new Map(),
  rollouts: new Map(),
  jobs: new Map(),
  past: new Map(), // by model: samples of the live figures, one a second
  message: null, // what an action did, told once
};

const watchers = new Set();
let isDue = false;

export function changed() {
  if (isDue) return;
  isDue = true;
  setTimeout(() => {
    isDue = false;
    watchers.forEach((watcher) => watcher());
  }, 16);
}

export function useStore() {
  const [, redraw] = useState(0);
  useEffect(() => {
    const watcher = () => redraw((n) => n + 1);
    watchers.add(watcher);
    return () => watchers.delete(watcher);
  }, []);
  return state;
}

export function set(values) {
  Object.assign(state, values);
  changed();
}

export const mayOperate = () => ["operate", "admin"].includes(state.session?.role);

export function say(text, kind = "good") {
  const message = { text, kind };
  set({ message });
  const readable = Math.max(6000, 60 * text.length); // milliseconds
  setTimeout(() => state.message === message && set({ message: null }), readable);
}

export function rolloutsOf(model) {
  return [...state.rollouts.values()].filter((r) => r.model === model).sort((a, b) => b.created - a.created);
}

export function jobsOf(model) {
  return [...state.jobs.values()].filter((j) => j.model === model).sort((a, b) => b.created - a.created);
}

const ENDED = new Set(["succeeded", "failed", "inconclusive"]);
export const isEnded = (rollout) => ENDED.has(rollout.phase);

// Keeps one sample a second of what sparklines draw.
export function sample() {
  for (const [model, live] of state.live) {
    const past = state.past.get(model) ?? [];
    state.past.set(model, past);
    past.push({ rps: live.requests_per_s, tiers: live.tiers, variants: live.variants });
    if (past.length > KEPT_S) past.shift();
  }
}

export function trail(model, pick) {
  return (state.past.get(model) ?? []).map((figures) => pick(figures) ?? 0);
}
