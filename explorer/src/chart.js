// Charts in SVG: scales with round ticks, axes, and points with labels and intervals.
import { html } from "./html.js";
import { digits } from "./numbers.js";
import { Picture } from "./picture.js";

const MARGIN = { left: 64, right: 20, top: 16, bottom: 44 };

// A scale from numbers to places: `scale(value)`, with `ticks`. `isLog`: by powers; `from`, `to`: places of the ends.
export function scaleOf(values, { from, to, isLog = false }) {
  const [least, most] = ends(values.filter((value) => Number.isFinite(value) && (!isLog || value > 0)), isLog);
  const move = isLog ? Math.log10 : (value) => value;
  const scale = (value) => from + ((move(value) - move(least)) / (move(most) - move(least))) * (to - from);
  return Object.assign(scale, { ticks: isLog ? logTicks(least, most) : linearTicks(least, most) });
}

function ends(values, isLog) {
  if (!values.length) return isLog ? [1, 10] : [0, 1];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  if (isLog) return least === most ? [least / 2, most * 2] : [least / (most / least) ** 0.06, most * (most / least) ** 0.06];
  const room = (most - least || Math.abs(most) || 1) * 0.08;
  return [least - room, most + room];
}

function linearTicks(least, most) {
  const rough = (most - least) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const first = Math.ceil(least / step);
  return Array.from({ length: Math.floor(most / step) - first + 1 }, (_, at) => (first + at) * step);
}

function logTicks(least, most) {
  const decades = Math.log10(most / least);
  const factors = decades > 3 ? [1] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const ticks = [];
  for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power += 1) {
    ticks.push(...factors.map((factor) => factor * 10 ** power));
  }
  return ticks.filter((tick) => tick >= least && tick <= most);
}

// A frame with axes around `draw({ x, y })`. `x`, `y`: { label, values, isLog, show }.
export function Chart({ title, width = 500, height = 320, x, y, draw }) {
  const across = scaleOf(x.values, { from: MARGIN.left, to: width - MARGIN.right, isLog: x.isLog });
  const up = scaleOf(y.values, { from: height - MARGIN.bottom, to: MARGIN.top, isLog: y.isLog });
  const bottom = height - MARGIN.bottom;
  return html`<${Picture} title=${title} width=${width} height=${height}>
    <g class="axis">
      ${across.ticks.map(
        (tick) => html`<path d=${`M${across(tick)} ${MARGIN.top}V${bottom}`} />
          <text x=${across(tick)} y=${bottom + 16} text-anchor="middle">${(x.show ?? digits)(tick)}</text>`,
      )}
      ${up.ticks.map(
        (tick) => html`<path d=${`M${MARGIN.left} ${up(tick)}H${width - MARGIN.right}`} />
          <text x=${MARGIN.left - 6} y=${up(tick)} text-anchor="end" dominant-baseline="central">${(y.show ?? digits)(tick)}</text>`,
      )}
      <text x=${(MARGIN.left + width - MARGIN.right) / 2} y=${height - 8} text-anchor="middle">${x.label}</text>
      <text x=${14} y=${(MARGIN.top + bottom) / 2} text-anchor="middle" transform=${`rotate(-90 14 ${(MARGIN.top + bottom) / 2})`}>${y.label}</text>
    </g>
    ${draw({ x: across, y: up })}
  <//>`;
}

// A point with a number beside it and, where there is one, an interval of its height.
export function Point({ x, y, label, title, low, high, kind = "point" }) {
  return html`<g class=${kind}>
    <title>${title}</title>
    ${low !== undefined && html`<path class="interval" d=${`M${x} ${low}V${high}`} />`}
    <circle cx=${x} cy=${y} r="4" />
    <text x=${x + 7} y=${y - 5}>${label}</text>
  </g>`;
}
