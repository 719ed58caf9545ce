// A pane with the graph of one stage. Nodes have the places of `layout`; what is outside of the pane is not drawn.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { html } from "./html.js";

const CELL = { width: 176, height: 46 };
const BOX = { width: 156, height: 28 };
const MARGIN = 16;
const MOST_LETTERS = 22;

// `nodes` and `ghosts`: Maps of id -> node, those of this stage and those that its pass removed. `kinds`: Map of id ->
// "added" | "changed" of nodes that are not as before. `isFitted`: as high as the graph, where that is little.
export function GraphPane({ places, rows, columns, nodes, ghosts, kinds, selected, onSelect, label, isFitted = false }) {
  const pane = useRef();
  const window = useWindow(pane);
  const edges = useMemo(() => edgesOf(nodes, places), [nodes, places]);
  useEffect(() => scrollTo(pane.current, places.get(selected)), [selected, places]);
  const isShown = ({ row, column }) =>
    row >= window.top && row <= window.bottom && column >= window.left && column <= window.right;
  const shown = [...nodes.values()].filter((node) => isShown(places.get(node.id)));
  const gone = [...ghosts.values()].filter((node) => isShown(places.get(node.id)));
  const crossing = edges.filter(([from, to]) => from.row <= window.bottom && to.row >= window.top);
  const width = columns * CELL.width + 2 * MARGIN;
  const height = rows * CELL.height + 2 * MARGIN;
  return html`<div class=${isFitted ? "graph-pane fitted" : "graph-pane"} ref=${pane} tabindex="0" role="region" aria-label=${label}>
    <svg width=${width} height=${height} role="group" aria-label=${label}>
      <path class="edges" d=${routes(crossing)} />
      <path class="edges of-selected" d=${routes(crossing.filter((ends) => ends.includes(places.get(selected))))} />
      ${gone.map((node) => html`<${Box} key=${`-${node.id}`} node=${node} place=${places.get(node.id)} kind="removed" />`)}
      ${shown.map(
        (node) => html`<${Box}
          key=${node.id}
          node=${node}
          place=${places.get(node.id)}
          kind=${kinds.get(node.id) ?? "same"}
          isSelected=${node.id === selected}
          onSelect=${onSelect}
        />`,
      )}
    </svg>
  </div>`;
}

function Box({ node, place, kind, isSelected, onSelect }) {
  const { x, y } = corner(place);
  const select = onSelect && (() => onSelect(node.id));
  const onKeyDown = (event) => event.key === "Enter" && select?.();
  const title = `${node.operator} ${node.name}, ${kind}`;
  return html`<g
    class=${`node ${kind} ${isSelected ? "selected" : ""}`}
    transform=${`translate(${x} ${y})`}
    role="button"
    tabindex=${select ? 0 : -1}
    aria-label=${title}
    onClick=${select}
    onKeyDown=${onKeyDown}
  >
    <title>${title}</title>
    <rect width=${BOX.width} height=${BOX.height} rx="4" />
    <text x=${BOX.width / 2} y=${BOX.height / 2}>${shortened(node.operator)}</text>
  </g>`;
}

// Rows and columns that the pane shows, with a margin, followed while it scrolls.
function useWindow(pane) {
  const [window, setWindow] = useState({ top: 0, bottom: 30, left: 0, right: 12 });
  useEffect(() => {
    const element = pane.current;
    const measure = () =>
      setWindow({
        top: Math.floor(element.scrollTop / CELL.height) - 4,
        bottom: Math.ceil((element.scrollTop + element.clientHeight) / CELL.height) + 4,
        left: Math.floor(element.scrollLeft / CELL.width) - 2,
        right: Math.ceil((element.scrollLeft + element.clientWidth) / CELL.width) + 2,
      });
    const watcher = new ResizeObserver(measure);
    watcher.observe(element);
    element.addEventListener("scroll", measure, { passive: true });
    return () => {
      watcher.disconnect();
      element.removeEventListener("scroll", measure);
    };
  }, []);
  return window;
}

function edgesOf(nodes, places) {
  const makers = new Map();
  for (const node of nodes.values()) for (const value of node.outputs) makers.set(value, node.id);
  const edges = [];
  for (const node of nodes.values()) {
    for (const value of node.inputs) {
      const maker = makers.get(value);
      if (maker !== undefined && maker !== node.id) edges.push([places.get(maker), places.get(node.id)]);
    }
  }
  return edges;
}

function routes(edges) {
  return edges.map(([from, to]) => route(from, to)).join("");
}

// Down from the producer, across just above the user, and down into it.
function route(from, to) {
  const start = corner(from);
  const end = corner(to);
  const x = start.x + BOX.width / 2;
  const across = end.y - (CELL.height - BOX.height) / 2;
  return `M${x} ${start.y + BOX.height}V${across}H${end.x + BOX.width / 2}V${end.y}`;
}

function corner({ row, column }) {
  return { x: MARGIN + column * CELL.width, y: MARGIN + row * CELL.height };
}

function scrollTo(element, place) {
  if (!place) return;
  const { x, y } = corner(place);
  element.scrollTo({ left: x - element.clientWidth / 2 + BOX.width / 2, top: y - element.clientHeight / 2 });
}

function shortened(text) {
  return text.length > MOST_LETTERS ? `${text.slice(0, MOST_LETTERS - 1)}…` : text;
}
