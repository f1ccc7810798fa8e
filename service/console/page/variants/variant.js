// A variant as the page shows it: what is known of the build joined with what it does now.
export function joined(model, live) {
  return model.variants.map((variant) => {
    const now = live?.variants[variant.name];
    const profile = chosen(variant);
    const quality = variant.quality?.validation ?? null;
    return {
      ...variant,
      version: `${variant.name}@${variant.build}`,
      profile,
      latency: profile?.latency_ms?.["1"]?.p50 ?? null,
      value: quality?.value ?? null,
      ratio: quality?.ratio ?? null,
      rps: now?.rps ?? 0,
      share: now?.share ?? 0,
      live: now ?? null,
    };
  });
}

// The profile that the gateway runs the variant by.
function chosen(variant) {
  const profiles = variant.profiles ?? [];
  return profiles.find((p) => p.runtime === variant.runtime && p.precision === variant.precision && p.threads === variant.threads) ?? null;
}

export const isMetricOfShares = (metric) => /accuracy|f1|auc|recall|precision/.test(metric);
