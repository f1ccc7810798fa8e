// Finds a place for each dot's name where it covers no other name and no dot.
const HIGH = 14;
const WIDE = 6.6; // pixels a character, about
const BREATH = 6; // pixels between two names on one line
const SHARE = 32; // room for the share of the traffic behind it

export function place(dots, area, obstacles) {
  const taken = [...obstacles, ...dots.map((d) => ({ left: d.x - d.r * 0.6, right: d.x + d.r * 0.6, top: d.y - d.r * 0.6, bottom: d.y + d.r * 0.6 }))];
  return [...dots].sort((a, b) => a.x - b.x).map((dot) => {
    const wide = dot.text.length * WIDE + (dot.variant.share > 0.005 ? SHARE : 0);
    const label = spots(dot, wide).find(({ box }) => isInside(box, area) && !taken.some((other) => overlap(box, other)));
    if (label) taken.push(label.box);
    return { ...dot, label: label && { ...label, text: dot.text } };
  });
}

function spots({ x, y, r }, wide) {
  const gap = r + 5;
  const found = [spot(x + gap, y + 4, "start", wide), spot(x - gap, y + 4, "end", wide)];
  for (const far of [0, 16, 32, 48, 64, 80, 96]) {
    for (const side of [-1, 1]) {
      const height = side < 0 ? y - gap - far : y + gap + 9 + far;
      const leader = far ? [x, y + side * r, x, height + (side < 0 ? 3 : -11)] : null;
      for (const anchor of ["middle", "start", "end"]) found.push({ ...spot(x, height, anchor, wide), leader });
    }
  }
  return found;
}

function spot(x, y, anchor, wide) {
  const left = anchor === "start" ? x : anchor === "end" ? x - wide : x - wide / 2;
  return { x, y, anchor, box: { left, right: left + wide, top: y - HIGH + 3, bottom: y + 3 } };
}

const isInside = (box, area) =>
  box.left >= area.left && box.right <= area.right + 8 && box.top >= 0 && box.bottom <= area.bottom;
const overlap = (a, b) => a.left < b.right + BREATH && b.left < a.right + BREATH && a.top < b.bottom && b.top < a.bottom;
