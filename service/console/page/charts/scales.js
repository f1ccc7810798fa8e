// From figures to pixels.
export function linear([from, to], [start, end]) {
  const place = (value) => start + ((value - from) / (to - from || 1)) * (end - start);
  return place;
}

export function logarithmic([from, to], range) {
  const place = linear([Math.log10(from), Math.log10(to)], range);
  return (value) => place(Math.log10(value));
}

// Round figures within a range, about as many as asked for.
export function ticks([from, to], wanted) {
  const raw = (to - from) / wanted;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((s) => s >= raw) ?? 10 * unit;
  const found = [];
  for (let tick = Math.ceil(from / step - 1e-9) * step; tick <= to + step * 1e-9; tick += step) found.push(tick);
  return found;
}

// 1, 2 and 5 times the powers of ten within a range, or all of 1 to 9 where those are few.
export function logTicks(range) {
  const found = multiples(range, [1, 2, 5]);
  return found.length >= 3 ? found : multiples(range, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

function multiples([from, to], all) {
  const found = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power += 1) {
    for (const times of all) {
      const tick = times * 10 ** power;
      if (tick >= from && tick <= to) found.push(tick);
    }
  }
  return found;
}
