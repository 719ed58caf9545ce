// Sweep: variants of a model, their quality over each cost, and the Pareto fronts.
import { Chart, Point } from "../chart.js";
import { html } from "../html.js";
import { bytes, digits } from "../numbers.js";
import { Table } from "../table.js";
import { LayerErrors, number, quality, qualityColumns } from "./results.js";

function Sweep({ data }) {
  const { metrics, costs, fronts, failures } = data.sweep;
  const variants = data.sweep.variants.map((variant, at) => ({ ...variant, at, title: `${at + 1}` }));
  const metric = Object.keys(metrics)[0];
  const columns = [
    { title: "Variant", isNumber: true, value: (row) => row.at + 1 },
    { title: "Passes", value: (row) => row.pipeline },
    ...qualityColumns(metrics),
    ...Object.entries(costs).map(([name, values]) => ({
      title: name,
      isNumber: true,
      value: (row) => values[row.at],
      show: (row) => html`${costText(name, values[row.at])}${fronts[name][row.at] && html` <b title="on the Pareto front">★</b>`}`,
    })),
  ];
  return html`<h2>Sweep</h2>
    <p>
      Quality is ${metric}, of which ${metrics[metric].more_is_better ? "more" : "less"} is better. A star and the line mark the
      Pareto front: no other variant is both as good and as cheap. Bars are 95% intervals of the difference to variant 1. Times
      are shares of variant 1's, measured in turns with it.
    </p>
    <div class="pictures">${Object.entries(costs).map(([name, values]) => html`<${Front} ...${{ name, values, variants, metric }} front=${fronts[name]} />`)}</div>
    <${Table} caption="Variants" columns=${columns} rows=${variants} />
    <${LayerErrors} rows=${variants.filter((variant) => Object.keys(variant.layer_errors).length)} />
    ${Object.entries(failures).map(([pipeline, reason]) => html`<p class="remark"><code>${pipeline}</code> failed: ${reason}</p>`)}`;
}

// Quality over one cost.
function Front({ name, values, variants, metric, front }) {
  const points = variants
    .map((variant, at) => ({ variant, at, cost: values[at], value: number(variant.qualities[metric].value) }))
    .filter(({ cost, value }) => cost !== null && Number.isFinite(value));
  const intervalOf = ({ variant }) => number(variant.qualities[metric].interval) || 0;
  const line = points.filter(({ at }) => front[at]).sort((a, b) => a.cost - b.cost);
  return html`<${Chart}
    title=${`${metric} over ${name}`}
    x=${{ label: name.replace(", bytes", ""), show: (value) => costText(name, value), values: points.map(({ cost }) => cost), isLog: !name.startsWith("time") }}
    y=${{ label: metric, values: points.flatMap((point) => [point.value - intervalOf(point), point.value + intervalOf(point)]) }}
    draw=${({ x, y }) => html`
      <path class="front" d=${line.map(({ cost, value }, at) => `${at ? "L" : "M"}${x(cost)} ${y(value)}`).join("")} />
      ${points.map(
        (point) => html`<${Point}
          x=${x(point.cost)}
          y=${y(point.value)}
          low=${y(point.value - intervalOf(point))}
          high=${y(point.value + intervalOf(point))}
          label=${point.at + 1}
          kind=${front[point.at] ? "point on-front" : "point"}
          title=${`${point.variant.pipeline}: ${quality(point.variant.qualities[metric])} at ${costText(name, point.cost)}`}
        />`,
      )}
    `}
  />`;
}

function costText(name, value) {
  if (value === null) return "–";
  return name.endsWith("bytes") ? bytes(value) : digits(value);
}

export const sweepView = {
  name: "sweep",
  title: "Sweep",
  key: "s",
  sections: ["sweep"],
  isOfReport: true,
  isFor: (index) => index.sections.includes("sweep"),
  Component: Sweep,
};
