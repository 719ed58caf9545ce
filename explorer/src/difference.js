// A difference of texts as rows; long runs of equal lines are folded, and open by a button.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { html } from "./html.js";

const CONTEXT = 3; // equal lines that stay around a change
const SIGNS = { same: " ", removed: "-", added: "+" };
const WORDS = { same: "", removed: "removed: ", added: "added: " };
const STEP = 400; // rows that are shown at first, and more by each press of the button

// `rows`: [{ kind, text, id }]. `onSelect(id)` follows a click on a line. `selected`: id of a line to mark.
export function Difference({ rows, selected, onSelect, label }) {
  const [opened, setOpened] = useState(new Set());
  const [count, setCount] = useState(STEP);
  const element = useRef();
  const parts = useMemo(() => folded(rows), [rows]);
  const shown = parts.flatMap((part, at) => (part.length === 1 || !part.isSame || opened.has(at) ? part : [{ fold: at, part }]));
  useEffect(() => element.current.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" }), [selected]);
  const open = (at) => setOpened(new Set([...opened, at]));
  return html`<div class="difference" ref=${element} tabindex="0" role="region" aria-label=${label}>
    ${shown.slice(0, count).map((row) =>
      row.fold === undefined
        ? html`<div class=${row.kind} aria-current=${row.id !== undefined && row.id === selected ? "true" : undefined} onClick=${() => row.id && onSelect(row.id)}>
            <span aria-hidden="true">${SIGNS[row.kind]}</span><span class="hidden">${WORDS[row.kind]}</span>${row.text}
          </div>`
        : html`<button class="fold" onClick=${() => open(row.fold)}>${row.part.length} equal lines</button>`,
    )}
    ${count < shown.length && html`<button class="fold" onClick=${() => setCount(count + STEP)}>${shown.length - count} more rows</button>`}
  </div>`;
}

// Rows in parts; an equal run without its context is a part of its own, with `isSame`.
function folded(rows) {
  const parts = [];
  let at = 0;
  while (at < rows.length) {
    let end = at;
    while (end < rows.length && rows[end].kind === "same") end += 1;
    const first = at === 0 ? 0 : Math.min(end, at + CONTEXT);
    const last = end === rows.length ? end : Math.max(first, end - CONTEXT);
    parts.push(rows.slice(at, first), Object.assign(rows.slice(first, last), { isSame: true }));
    let stop = end;
    while (stop < rows.length && rows[stop].kind !== "same") stop += 1;
    parts.push(rows.slice(last, stop));
    at = stop;
  }
  return parts.filter((part) => part.length);
}
