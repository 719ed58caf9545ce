// The part of an axis of time that is shown, with its keys: as in Perfetto, w and s zoom, a and d move.
import { useState } from "preact/hooks";
import { useViewKeys } from "./keys.js";

const LEAST = 0.05; // microseconds that are shown at least
const ZOOM = 1.6;
const STEP = 0.25;

export function useTimeWindow(whole) {
  const [[from, to], set] = useState([0, whole]);
  const show = (start, length) => {
    const shown = Math.min(Math.max(length, LEAST), whole);
    const first = Math.min(Math.max(start, 0), whole - shown);
    set([first, first + shown]);
  };
  const zoom = (factor, around = (from + to) / 2) => show(around - (around - from) / factor, (to - from) / factor);
  const move = (shift) => show(from + shift, to - from);
  const actions = [
    ["w", "Zoom in", () => zoom(ZOOM)],
    ["s", "Zoom out", () => zoom(1 / ZOOM)],
    ["a", "Earlier", () => move(-STEP * (to - from))],
    ["d", "Later", () => move(STEP * (to - from))],
    ["0", "Whole run", () => show(0, whole)],
  ];
  useViewKeys(actions);
  return { from, to, zoom, move, show, actions };
}

// Round moments in the window, about one per 90 px, with labels that differ.
export function ticksOf(from, to, width) {
  const rough = ((to - from) * 90) / Math.max(width, 90);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const [unit, name] = to >= 1e6 ? [1e6, "s"] : to >= 1e3 ? [1e3, "ms"] : [1, "µs"];
  const places = Math.max(0, Math.ceil(-Math.log10(step / unit) - 1e-9));
  const first = Math.ceil(from / step);
  const ticks = Array.from({ length: Math.floor(to / step) - first + 1 }, (_, at) => (first + at) * step);
  return ticks.map((moment) => ({ moment, label: `${(moment / unit).toFixed(places)} ${name}` }));
}
