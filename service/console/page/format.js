// Figures for people.
const NONE = "–";
const digits = (value) => (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);

export function number(value, places) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const fixed = places ?? (Number.isInteger(value) ? 0 : digits(value));
  return value.toLocaleString("en", { minimumFractionDigits: fixed, maximumFractionDigits: fixed });
}

export function rate(value) {
  if (value === null || value === undefined) return NONE;
  if (value >= 10_000) return `${number(value / 1000, 1)}k`;
  return number(value, value >= 100 || value === 0 ? 0 : 1);
}

export function ms(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  return number(value, value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3);
}

export function percent(share, places) {
  if (share === null || share === undefined || !Number.isFinite(share)) return NONE;
  const value = share * 100;
  const exact = places ?? (Number.isInteger(value) ? 0 : value > 99 || value < 1 ? 2 : 1);
  return `${number(value, exact)}%`;
}

export function weight(value) {
  return `${number(value, Number.isInteger(value) ? 0 : 1)}%`;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return NONE;
  const units = ["B", "kB", "MB", "GB"];
  const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, value)) / 3));
  const scaled = value / 1000 ** step;
  return `${number(scaled, step === 0 || scaled >= 10 ? 0 : 1)} ${units[step]}`;
}

export function count(value) {
  if (!Number.isFinite(value)) return NONE;
  if (value >= 1e9) return `${number(value / 1e9, 1)}G`;
  if (value >= 1e6) return `${number(value / 1e6, 1)}M`;
  if (value >= 1e4) return `${number(value / 1e3, 0)}k`;
  return number(value);
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60 ? `${whole % 60} s` : ""}`.trim();
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d`;
}

export const now = () => Date.now() / 1000;

export function ago(at) {
  const passed = now() - at;
  return passed < 5 ? "just now" : `${duration(passed < 600 ? passed : passed - (passed % 60))} ago`;
}

export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString("en-GB");
}

export const moment = (at) => new Date(at * 1000).toLocaleString("en-GB");
export const recipeOf = (version) => version.split("@")[0];
