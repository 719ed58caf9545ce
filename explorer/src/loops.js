// The loops of a kernel: a tree with trip counts, bytes and operations, and the nest drawn as boxes in boxes.
import { html } from "./html.js";
import { bytes, count } from "./numbers.js";
import { Picture } from "./picture.js";

const SIZE = { indent: 10, head: 18, gap: 4, width: 720 };
const MOST_LETTERS = 90;

// `loops`: [{ variable, kind, line, extent, bytes_read, bytes_written, operations, children }]; numbers or formulas.
// `onSelect(line)` follows a click on a loop to its line in TIR.
export function LoopTree({ loops, selected, onSelect }) {
  const rows = flat(loops, 0);
  return html`<div class="table" tabindex="0" role="region" aria-label="Loops">
    <table>
      <caption>Loops, with what one run of each moves and computes</caption>
      <thead>
        <tr><th scope="col">Loop</th><th scope="col">Kind</th><th scope="col">Trips</th><th scope="col">Reads</th><th scope="col">Writes</th><th scope="col">Operations</th></tr>
      </thead>
      <tbody>
        ${rows.map(
          ({ loop, depth }) => html`<tr aria-current=${loop.line === selected ? "true" : undefined}>
            <th scope="row" style=${{ paddingLeft: `${depth * 18}px` }}>
              <button class="quiet" onClick=${() => onSelect(loop.line)}>${loop.variable}</button>
            </th>
            <td>${loop.kind}</td>
            <td><${Amount} value=${loop.extent} show=${String} /></td>
            <td><${Amount} value=${loop.bytes_read} show=${bytes} /></td>
            <td><${Amount} value=${loop.bytes_written} show=${bytes} /></td>
            <td><${Amount} value=${loop.operations} show=${count} /></td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

// A number with its unit, or the formula of sizes that only a run knows.
function Amount({ value, show }) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return show(value);
  return html`<code class="formula" title=${value}>${value}</code>`;
}

function flat(loops, depth) {
  return loops.flatMap((loop) => [{ loop, depth }, ...flat(loop.children, depth + 1)]);
}

// Boxes in boxes: each loop holds those inside it, coloured by how it runs.
export function LoopPicture({ loops, name }) {
  const boxes = [];
  const height = place(loops, 0, SIZE.gap, SIZE.width, boxes);
  return html`<${Picture} title=${`Loop nest of ${name}`} width=${SIZE.width} height=${height + SIZE.gap}>
    ${boxes.map(
      ({ x, y, width, height: own, text, kind }) => html`<g class=${`loop ${kind.replace(/\W+/g, "-")}`}>
        <rect x=${x} y=${y} width=${width} height=${own} rx="3" />
        <text x=${x + 6} y=${y + 13}>${text}</text>
      </g>`,
    )}
  <//>`;
}

// Places boxes below each other within a width; returns the place below them.
function place(loops, x, y, width, boxes) {
  for (const loop of loops) {
    const text = `${loop.variable}: ${loop.extent} (${loop.kind})`;
    const box = { x, y, width, kind: loop.kind, text: text.length > MOST_LETTERS ? `${text.slice(0, MOST_LETTERS)}…` : text };
    boxes.push(box);
    const end = place(loop.children, x + SIZE.indent, y + SIZE.head + SIZE.gap, width - 2 * SIZE.indent, boxes);
    box.height = end - y;
    y = end + SIZE.gap;
  }
  return y;
}
