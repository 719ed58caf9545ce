// Parts that the pages of `moec sweep` and `moec evaluate` share: qualities with intervals, and errors of layers.
import { html } from "../html.js";
import { digits, percent } from "../numbers.js";
import { Table } from "../table.js";

// "1.39 (+0.013 ± 0.0021)": a value, its difference to the first, and half of its 95% interval.
export function quality({ value, difference, interval }) {
  if (difference === null) return shown(value);
  const sign = Number(difference) > 0 ? "+" : "";
  return `${shown(value)} (${sign}${shown(difference)}${interval === null ? "" : ` ± ${shown(interval)}`})`;
}

// Numbers that are not finite are words in the document.
export function shown(value) {
  return typeof value === "number" ? digits(value) : String(value);
}

export function number(value) {
  return typeof value === "number" ? value : NaN;
}

export function qualityColumns(metrics) {
  return Object.entries(metrics).map(([name, { more_is_better: more }]) => ({
    title: `${name} (${more ? "more" : "less"} is better)`,
    isNumber: true,
    value: (row) => number(row.qualities[name].value),
    show: (row) => quality(row.qualities[name]),
  }));
}

// `rows`: [{ title, layer_errors }].
export function LayerErrors({ rows }) {
  const layers = [...new Set(rows.flatMap((row) => Object.keys(row.layer_errors)))];
  if (!layers.length) return html`<p class="soft">No weights were rounded, so no layer has an error.</p>`;
  const columns = [
    { title: "Layer", value: (layer) => layer },
    ...rows.map((row) => ({
      title: row.title,
      isNumber: true,
      value: (layer) => row.layer_errors[layer] ?? null,
      show: (layer) => (layer in row.layer_errors ? percent(row.layer_errors[layer]) : "–"),
    })),
  ];
  return html`<${Table} caption="Error of each layer's output, of its norm, by rounding its weights" columns=${columns} rows=${layers} />`;
}
