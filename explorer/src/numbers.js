// Numbers with units, as people write them.

export function bytes(count) {
  return scaled(count, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
}

export function count(value) {
  return scaled(value, 1000, ["", "K", "M", "G", "T"]);
}

export function microseconds(value) {
  return value >= 1e6 ? `${digits(value / 1e6)} s` : value >= 1e3 ? `${digits(value / 1e3)} ms` : `${digits(value)} µs`;
}

export function percent(share) {
  return share > 0 && share < 1e-4 ? "< 0.01%" : `${digits(100 * share)}%`;
}

// Three significant digits, without an exponent for usual sizes.
export function digits(value) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

function scaled(value, base, units) {
  let unit = 0;
  while (Math.abs(value) >= base && unit + 1 < units.length) {
    value /= base;
    unit += 1;
  }
  return `${digits(value)} ${units[unit]}`.trim();
}
