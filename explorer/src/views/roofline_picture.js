// Picture of a roofline: the roofs of a machine, and a point for each kernel.
import { Chart } from "../chart.js";
import { html } from "../html.js";
import { count } from "../numbers.js";

export const KINDS = {
  product: ["Products with weights", "var(--series-2)"],
  counted: ["Other products", "var(--series-1)"],
};

const LABELS = 6; // kernels that are named in the picture
const LEAST = 4; // pixels of a point, and how much the largest share adds
const MORE = 12;
const BEYOND = 12; // how far roofs go on to the right of the last ridge

// `kernels`: those with operations. `onShow(kernel or null)`: the one under the pointer or with the focus.
export function RooflinePicture({ machine, run, kernels, link, onShow }) {
  const slope = machine.bytes_per_second;
  const peaks = machine.roofs.map((roof) => roof.operations_per_second);
  const used = new Set(kernels.map((kernel) => kernel.arithmetic));
  const roofs = machine.roofs.map((roof) => ({ ...roof, isUsed: roof.arithmetic.some((name) => used.has(name)) }));
  const intensities = [...kernels.map((kernel) => kernel.operations_per_byte), ...peaks.map((peak) => (BEYOND * peak) / slope), 0.25];
  const rates = [...kernels.map((kernel) => kernel.operations_per_second), ...peaks];
  const title = `Roofline of ${machine.title}, ${run.title}, ${run.measured ? "measured" : "predicted"}`;
  return html`<${Chart}
    title=${title}
    width=${720}
    height=${420}
    x=${{ label: "Operations per byte", values: intensities, isLog: true }}
    y=${{ label: "Operations per second", values: rates, isLog: true, show: count }}
    draw=${({ x, y }) => html`
      <${Roofs} ...${{ roofs, slope, x, y, least: Math.min(...intensities), lowest: Math.min(...rates), most: Math.max(...intensities) }} />
      ${[...kernels].sort((a, b) => b.share_of_time - a.share_of_time).map((kernel) => html`<${Kernel} ...${{ kernel, x, y, link, onShow }} isMeasured=${run.measured} />`)}
      ${labels(kernels, x, y)}
    `}
  />`;
}

function Roofs({ roofs, slope, x, y, least, lowest, most }) {
  const top = Math.max(...roofs.map((roof) => roof.operations_per_second));
  const from = Math.max(least, lowest / slope);
  return html`<path class="roof" d=${`M${x(from)} ${y(from * slope)}L${x(top / slope)} ${y(top)}`} />
    ${roofs.map((roof) => {
      const rate = roof.operations_per_second;
      return html`<path class=${roof.isUsed ? "roof" : "roof unused"} d=${`M${x(rate / slope)} ${y(rate)}H${x(most)}`} />
        <text class="roof-name" x=${x(most)} y=${y(rate) - 5} text-anchor="end">${roof.arithmetic.join(", ")}: ${count(rate)} per second</text>`;
    })}`;
}

function Kernel({ kernel, x, y, link, onShow, isMeasured }) {
  const size = LEAST + MORE * Math.sqrt(kernel.share_of_time);
  const [left, top] = [x(kernel.operations_per_byte), y(kernel.operations_per_second)];
  const shape = isMeasured
    ? html`<circle cx=${left} cy=${top} r=${size} />`
    : html`<path d=${`M${left - size} ${top}L${left} ${top - size}L${left + size} ${top}L${left} ${top + size}Z`} />`;
  const show = () => onShow(kernel);
  return html`<a
    class=${isMeasured ? "kernel-point" : "kernel-point predicted"}
    href=${link("kernel", kernel.name)}
    aria-label=${kernel.name}
    style=${`--colour: ${KINDS[kernel.kind][1]}`}
    ...${{ onFocus: show, onMouseEnter: show, onBlur: () => onShow(null), onMouseLeave: () => onShow(null) }}
    ><title>${kernel.name}</title>${shape}</a
  >`;
}

// Names of the slowest kernels, where they cover no other name.
function labels(kernels, x, y) {
  const placed = [];
  for (const kernel of kernels.slice(0, LABELS)) {
    const text = kernel.name.length > 26 ? `${kernel.name.slice(0, 25)}…` : kernel.name;
    const size = LEAST + MORE * Math.sqrt(kernel.share_of_time);
    const place = { text, left: x(kernel.operations_per_byte) + size + 4, top: y(kernel.operations_per_second) + 14 };
    const isFree = placed.every((other) => Math.abs(other.top - place.top) > 14 || Math.abs(other.left - place.left) > 170);
    if (isFree) placed.push(place);
  }
  return placed.map(({ text, left, top }) => html`<text class="kernel-name" x=${left} y=${top}>${text}</text>`);
}
