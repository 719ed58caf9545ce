// Evaluation: qualities of models on the same data, with intervals of their differences, and errors of layers.
import { html } from "../html.js";
import { bytes, digits } from "../numbers.js";
import { Picture } from "../picture.js";
import { scaleOf } from "../chart.js";
import { Table } from "../table.js";
import { LayerErrors, number, qualityColumns, shown } from "./results.js";

const ROW = 30;
const WIDTH = 640;
const LABELS = 200;

function Evaluation({ data }) {
  const { output, rows, predictions, models, method, metrics } = data.evaluation;
  const columns = [
    { title: "Model", value: (model) => model.name },
    { title: "Weights", isNumber: true, value: (model) => model.weight_bytes, show: (model) => bytes(model.weight_bytes) },
    { title: "Bits of experts", isNumber: true, value: (model) => model.expert_bits, show: (model) => (model.expert_bits === null ? "–" : digits(model.expert_bits)) },
    ...qualityColumns(metrics),
    { title: "NaN in outputs", isNumber: true, value: (model) => model.nan_outputs },
  ];
  return html`<h2>Evaluation</h2>
    <p>Output ${output}, ${rows} rows of data${predictions ? `, ${predictions} predictions` : ""}. In brackets: ${method}.</p>
    <${Table} caption="Models" columns=${columns} rows=${models} />
    ${models.length > 1 && Object.keys(metrics).map((name) => html`<${Differences} name=${name} models=${models.slice(1)} first=${models[0].name} />`)}
    <${LayerErrors} rows=${models.map((model) => ({ title: model.name, layer_errors: model.layer_errors }))} />`;
}

// Differences to the first model with their intervals, around a line at 0.
function Differences({ name, models, first }) {
  const rows = models.map(({ name: title, qualities }) => ({
    title,
    difference: number(qualities[name].difference),
    interval: number(qualities[name].interval) || 0,
  }));
  const ends = rows.flatMap(({ difference, interval }) => [difference - interval, difference + interval]);
  const x = scaleOf([0, ...ends], { from: LABELS, to: WIDTH - 90 });
  const height = rows.length * ROW + 10;
  return html`<${Picture} title=${`Difference of ${name} to ${first}, with 95% intervals`} width=${WIDTH} height=${height}>
    <path class="zero" d=${`M${x(0)} 0V${height}`} />
    ${rows.map(({ title, difference, interval }, at) => {
      const y = at * ROW + ROW / 2 + 5;
      const isFinite = Number.isFinite(difference);
      return html`<g class="point">
        <text x=${LABELS - 12} y=${y} text-anchor="end" dominant-baseline="central"><title>${title}</title>${shortened(title)}</text>
        ${isFinite && html`<path class="interval" d=${`M${x(difference - interval)} ${y}H${x(difference + interval)}`} /><circle cx=${x(difference)} cy=${y} r="4" />`}
        <text x=${WIDTH - 82} y=${y} dominant-baseline="central">${isFinite && difference > 0 ? "+" : ""}${shown(isFinite ? difference : "not finite")}</text>
      </g>`;
    })}
  <//>`;
}

function shortened(text) {
  return text.length > 24 ? `…${text.slice(-23)}` : text;
}

export const evaluationView = {
  name: "evaluation",
  title: "Evaluation",
  key: "v",
  sections: ["evaluation"],
  isOfReport: true,
  isFor: (index) => index.sections.includes("evaluation"),
  Component: Evaluation,
};
