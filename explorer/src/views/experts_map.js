// Map of layers and experts: one path for all cells of a colour, so that thousands of cells are a dozen elements.
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { html } from "../html.js";
import { Picture } from "../picture.js";
import { useWidth } from "../width.js";
import { scaleOf } from "./experts_colours.js";

const LEFT = 40;
const TOP = 20;
const LEAST = 8; // side of a cell
const MOST = 26;

// `cursor`: [layer, expert] or null. `onChoose(layer, expert)`: a cell was clicked, or Enter pressed on it.
export function ExpertsMap({ layers, names, measure, byTokens, cursor, onChoose, describe }) {
  const [frame, available] = useWidth();
  const [at, setAt] = useState(cursor);
  const latest = useRef(cursor); // at once: a second key comes before the first is drawn
  const move = (cell) => setAt((latest.current = cell));
  useLayoutEffect(() => move(cursor), [cursor?.join()]);
  const columns = Math.max(...layers.map((layer) => layer.experts.length));
  const side = Math.max(LEAST, Math.min(MOST, Math.floor((available - LEFT - 4) / columns)));
  const paths = useMemo(() => pathsOf(layers, side, measure, byTokens), [layers, side, measure, byTokens]);
  const cellAt = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const layer = Math.floor((event.clientY - box.top - TOP) / side);
    const expert = Math.floor((event.clientX - box.left - LEFT) / side);
    return layers[layer]?.experts[expert] ? [layer, expert] : null;
  };
  const onClick = (event) => {
    const cell = cellAt(event);
    if (cell) onChoose(...cell);
  };
  // A pointer that rests enters and leaves, too, when what is below it is drawn anew: keys go before it.
  const onPointer = (event) => {
    if (event.movementX || event.movementY) move((event.type === "mousemove" && cellAt(event)) || cursor);
  };
  const onKeyDown = (event) => {
    const next = moved(latest.current, event.key, layers);
    if (next) move(next);
    else if (event.key === "Enter" && latest.current) onChoose(...latest.current);
    else return;
    event.preventDefault();
  };
  const shown = at && layers[at[0]]?.experts[at[1]] ? at : null;
  const every = Math.ceil(16 / side);
  return html`<div ref=${frame}>
    <${Picture} title="Layers and their experts" width=${LEFT + columns * side + 4} height=${TOP + layers.length * side + 4}
      ...${{ onClick, onKeyDown }} role="application" tabindex="0" aria-roledescription="map: arrow keys move, Enter opens"
      onMouseMove=${onPointer} onMouseLeave=${onPointer} class="experts-map">
      ${layers.map((layer, row) => row % every === 0 && html`<text x=${LEFT - 6} y=${TOP + row * side + side / 2 + 4} text-anchor="end" fill="var(--soft)">${names[row]}</text>`)}
      ${numbered(columns, side).map((expert) => html`<text x=${LEFT + expert * side + side / 2} y=${TOP - 6} text-anchor="middle" fill="var(--soft)">${expert}</text>`)}
      ${paths.map(([path, style]) => html`<path d=${path} ...${style} />`)}
      ${shown && html`<rect x=${LEFT + shown[1] * side - 1} y=${TOP + shown[0] * side - 1} width=${side + 1} height=${side + 1} fill="none" stroke="var(--ink)" stroke-width="2" />`}
    <//>
    <p class="soft" role="status">${shown ? describe(...shown) : "Rows are layers, columns are experts. Click one, or move with the arrow keys."}</p>
  </div>`;
}

function moved(at, key, layers) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] }[key];
  if (!step) return null;
  if (!at) return [0, 0];
  const layer = clamp(at[0] + step[0], layers.length - 1);
  return [layer, clamp(at[1] + step[1], layers[layer].experts.length - 1)];
}

function clamp(value, most) {
  return Math.max(0, Math.min(most, value));
}

function numbered(columns, side) {
  const step = [1, 2, 4, 8, 16, 32, 64].find((each) => each * side >= 26) ?? 128;
  return Array.from({ length: Math.ceil(columns / step) }, (_, at) => at * step);
}

// Paths of all cells: [path, attributes]. Areas go by tokens where `byTokens`: half of a cell is the mean of its layer.
function pathsOf(layers, side, measure, byTokens) {
  const all = layers.flatMap((layer) => layer.experts);
  const { level, colours } = scaleOf(measure, all);
  const [tints, cells] = [colours.map(() => []), colours.map(() => [])];
  const [empty, dropped, merged, read] = [[], [], [], []];
  layers.forEach((layer, row) => {
    const mean = layer.experts.reduce((sum, expert) => sum + (expert.tokens ?? 0), 0) / layer.experts.length;
    layer.experts.forEach((expert, column) => {
      const [x, y] = [LEFT + column * side, TOP + row * side];
      const own = level(expert);
      const share = byTokens && expert.tokens !== undefined ? Math.sqrt(Math.min(1, expert.tokens / (2 * mean || 1))) : 1;
      const size = (side - 1) * share;
      (own === null ? empty : tints[own]).push(square(x, y, side - 1, side - 1));
      if (own !== null && size > 1) cells[own].push(square(x, y, side - 1, size));
      if (expert.number === null) dropped.push(`M${x + 1} ${y + 1}l${side - 3} ${side - 3}m0 ${3 - side}l${3 - side} ${side - 3}`);
      if (expert.with.length) merged.push(`M${x} ${y}h${side / 2}l${-side / 2} ${side / 2}z`);
      if (expert.memory === "read") read.push(`M${x} ${y + side - 1.5}h${side - 1}`);
    });
  });
  return [
    [empty.join(""), { fill: "var(--panel)" }],
    ...tints.map((own, at) => [own.join(""), { fill: colours[at], opacity: 0.3 }]),
    ...cells.map((own, at) => [own.join(""), { fill: colours[at] }]),
    [merged.join(""), { fill: "var(--ink)" }],
    [read.join(""), { fill: "none", stroke: "var(--ink)", "stroke-width": 1 }],
    [dropped.join(""), { fill: "none", stroke: "var(--bad)", "stroke-width": 1.5 }],
  ].filter(([path]) => path);
}

// A square of side `size` in the middle of one of side `whole`.
function square(x, y, whole, size) {
  const inset = (whole - size) / 2;
  return `M${round(x + inset)} ${round(y + inset)}h${round(size)}v${round(size)}h${round(-size)}z`;
}

function round(value) {
  return Math.round(value * 10) / 10;
}
