// Colours of experts: by bits, by tokens or by error, each with a legend of levels.
import { count, digits, percent } from "../numbers.js";

// Levels of bits: the most bits of each, and its colour.
const BITS = [
  [2.5, "var(--series-2)"],
  [3.5, "var(--series-5)"],
  [4.5, "var(--series-4)"],
  [6.5, "var(--series-3)"],
  [8.5, "var(--series-1)"],
  [Infinity, "var(--series-6)"],
];
const STEPS = 6;

// Each measure: its title, the value of an expert (null where there is none), and whether it needs a profile.
export const MEASURES = {
  bits: { title: "Bits", value: (expert) => expert.bits },
  tokens: { title: "Tokens", value: (expert) => expert.tokens ?? null, isMeasured: true },
  error: { title: "Error", value: (expert) => expert.error ?? null, isMeasured: true },
};

// Returns { level(expert) -> number or null, colours, labels }, where unused levels have no label.
export function scaleOf(measure, experts) {
  const values = experts.map(MEASURES[measure].value).filter((value) => value !== null);
  return measure === "bits" ? bitLevels(values) : ramp(measure, Math.max(0, ...values));
}

function bitLevels(values) {
  const level = (value) => BITS.findIndex(([most]) => value <= most);
  const labels = BITS.map((_, at) => {
    const own = values.filter((value) => level(value) === at);
    if (own.length === 0) return null;
    const [least, most] = [own.reduce((a, b) => Math.min(a, b)), own.reduce((a, b) => Math.max(a, b))].map(digits);
    return `${least === most ? least : `${least} to ${most}`} bits`;
  });
  return { level: (expert) => (expert.bits === null ? null : level(expert.bits)), colours: BITS.map(([, colour]) => colour), labels };
}

function ramp(measure, most) {
  const { value } = MEASURES[measure];
  const show = measure === "error" ? percent : count;
  const colours = Array.from({ length: STEPS }, (_, at) => `color-mix(in oklab, var(--series-2) ${Math.round(((at + 1) / STEPS) * 100)}%, var(--panel))`);
  const level = (expert) => {
    const own = value(expert);
    return own === null ? null : Math.min(STEPS - 1, Math.floor((own / (most || 1)) * STEPS));
  };
  return { level, colours, labels: colours.map((_, at) => `${at < STEPS - 1 ? "under" : "up to"} ${show(((at + 1) / STEPS) * most)}`) };
}
