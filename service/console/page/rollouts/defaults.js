// What a new rollout is filled in with: guards that the model and the candidate can be judged by.
export const KINDS = {
  canary: ["Canary", "The candidate takes growing steps of the traffic while every guard looks well."],
  ab: ["A/B", "Both keep their weights until every guard has passed."],
  shadow: ["Shadow", "A fraction of the requests is copied; no caller ever gets the candidate's answer."],
  bandit: ["Bandit", "Traffic follows the reward; ends when the candidate surely earns more."],
};

export function guardsFor(kind, candidate, isOfClasses) {
  if (kind === "bandit") return ["errors<=1%"];
  const same = isOfClasses ? `agreement>=${floor(candidate)}@95%,n=200` : "cosine>=0.99@95%,n=200";
  return kind === "shadow" ? [same, "errors<=1%"] : [same, "p99<=1.5x", "errors<=1%"];
}

// Clearly below what was measured: what lies at the threshold itself is never decided.
function floor(candidate) {
  const measured = candidate?.quality?.agreement ?? 1;
  return Math.max(0.5, Math.floor((measured - 0.01) * 100) / 100);
}

export function body(kind, values) {
  const guards = values.guards.map((guard) => guard.trim()).filter(Boolean);
  const several = kind === "shadow" || kind === "bandit";
  return {
    kind,
    candidate: several ? values.candidates : values.candidates[0],
    ...(values.primary && { primary: values.primary }),
    ...(values.tier && { tier: values.tier }),
    ...(kind === "canary" && { steps: values.steps.split(/[\s,%]+/).filter(Boolean).map(Number) }),
    ...(kind === "ab" && { weight: Number(values.weight) }),
    ...(kind === "shadow" && { fraction: Number(values.fraction) / 100 }),
    ...(kind === "bandit" && { reward: values.reward }),
    ...((kind === "canary" || kind === "bandit") && { step_duration_s: Number(values.stepDuration) }),
    guards,
    failure: values.failure,
    max_duration_s: Number(values.minutes) * 60,
  };
}
