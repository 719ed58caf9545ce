// A table that a screen reader reads: a caption, column heads, and a head per row. Heads sort where values are numbers.
import { useState } from "preact/hooks";
import { html } from "./html.js";

const STEP = 200; // rows that are shown at first, and more by each press of the button

// `columns`: [{ title, value(row), show(row) or undefined, isNumber, isText }]; the first column heads its row.
export function Table({ caption, columns, rows }) {
  const [order, setOrder] = useState(null); // { column, sign }
  const [count, setCount] = useState(STEP);
  const sorted = order === null ? rows : [...rows].sort((a, b) => compare(order.column.value(a), order.column.value(b), order.sign));
  const sort = (column) => setOrder({ column, sign: order?.column === column ? -order.sign : column.isNumber ? -1 : 1 });
  return html`<div class="table" tabindex="0" role="region" aria-label=${caption}>
    <table>
      <caption><span>${caption}</span></caption>
      <thead>
        <tr>
          ${columns.map((column) => {
            const direction = order?.column !== column ? "none" : order.sign < 0 ? "descending" : "ascending";
            return html`<th scope="col" aria-sort=${direction} class=${column.isNumber ? "number" : ""}>
              <button onClick=${() => sort(column)}>${column.title}</button>
            </th>`;
          })}
        </tr>
      </thead>
      <tbody>
        ${sorted.slice(0, count).map((row) => html`<tr>${columns.map((column, at) => cell(column, row, at === 0))}</tr>`)}
      </tbody>
    </table>
    ${count < rows.length && html`<button onClick=${() => setCount(count + STEP)}>${rows.length - count} more rows</button>`}
  </div>`;
}

function cell(column, row, isHead) {
  const content = (column.show ?? column.value)(row);
  const kind = column.isNumber ? "number" : column.isText ? "text" : "";
  return isHead ? html`<th scope="row" class=${kind}>${content}</th>` : html`<td class=${kind}>${content}</td>`;
}

// Unknown values stand last in both directions.
function compare(a, b, sign) {
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return a < b ? -sign : sign;
}
