// Calls of kernels over time, one lane for each kind of part, with the layers above them and counters below. Only what is
// in the window is drawn, with one path per lane; calls are found by their coordinates.
import { useRef } from "preact/hooks";
import { html } from "../html.js";
import { bytes } from "../numbers.js";
import { COLOURS, layerName } from "../parts.js";
import { Picture } from "../picture.js";
import { callAt, firstIndex } from "../timeline_data.js";
import { ticksOf } from "../timeline_window.js";

const TOP = 40; // ticks and layers
const NAME = 15;
const BAR = 18;
const LANE = NAME + BAR + 5;
const AREA = 44;
const COUNTER = NAME + AREA + 6;
const LETTER = 6.6;
const CLICK = 4; // pixels that a click may move

// `calls`, `lanes`, `layers`, `counters`: as of timeline_data.js. `marked`: a call that is outlined. `onPoint(call, moment)`
// follows the pointer; `onOpen(call, isTouch)` is a click.
export function TimelinePicture({ title, width, lanes, layers, counters, time, marked, moment, onPoint, onOpen }) {
  const drag = useRef(null);
  const height = TOP + lanes.length * LANE + counters.length * COUNTER + 4;
  const x = (at) => ((at - time.from) / (time.to - time.from)) * width;
  const at = (event) => time.from + ((event.clientX - event.currentTarget.getBoundingClientRect().left) / width) * (time.to - time.from);
  const point = (event) => {
    const lane = Math.floor((event.clientY - event.currentTarget.getBoundingClientRect().top - TOP) / LANE);
    return callAt(lanes[lane]?.calls ?? [], at(event), (3 / width) * (time.to - time.from));
  };
  const onPointerMove = (event) => {
    if (drag.current === null) return onPoint(point(event), at(event));
    const shift = event.clientX - drag.current.last;
    drag.current.moved += Math.abs(shift);
    drag.current.last = event.clientX;
    if (drag.current.moved > CLICK) time.move((-shift / width) * (time.to - time.from));
  };
  const onPointerDown = (event) => {
    drag.current = { last: event.clientX, moved: 0 };
    event.currentTarget.setPointerCapture(event.pointerId);
  };
  const onPointerUp = (event) => {
    const call = drag.current !== null && drag.current.moved <= CLICK ? point(event) : null;
    drag.current = null;
    if (call !== null) onOpen(call, event.pointerType === "touch");
  };
  const onPointerCancel = () => (drag.current = null);
  const onWheel = (event) => {
    if (!event.ctrlKey) return; // the page scrolls
    event.preventDefault();
    time.zoom(event.deltaY < 0 ? 1.25 : 0.8, at(event));
  };
  const onPointerLeave = () => drag.current === null && onPoint(null, null);
  const handlers = { onPointerMove, onPointerDown, onPointerUp, onPointerCancel, onPointerLeave, onWheel };
  const bottom = TOP + lanes.length * LANE;
  return html`<${Picture} title=${title} width=${width} height=${height} class="timeline" ...${handlers}>
    <${Axis} ...${{ time, width, height, x }} />
    <${Layers} ...${{ layers, time, x, width }} />
    ${lanes.map((lane, place) => html`<${Lane} key=${lane.title} ...${{ lane, x, time, width, marked }} y=${TOP + place * LANE} />`)}
    ${counters.map((counter, place) => html`<${Counter} key=${counter.name} ...${{ counter, x, time, width }} y=${bottom + place * COUNTER} />`)}
    ${moment !== null && html`<path d=${`M${x(moment)} ${TOP}V${height}`} stroke="var(--soft)" stroke-dasharray="2 3" />`}
  <//>`;
}

function Axis({ time, width, height, x }) {
  return html`<g class="axis">
    ${ticksOf(time.from, time.to, width).map(
      ({ moment, label }) => html`<path d=${`M${x(moment)} 14V${height}`} />
        ${x(moment) < width - 50 && html`<text x=${x(moment) + 3} y="11">${label}</text>`}`,
    )}
  </g>`;
}

function Layers({ layers, time, x, width }) {
  const shown = layers.filter((span) => span.to > time.from && span.from < time.to);
  return shown.map((span) => {
    const [left, right] = [Math.max(0, x(span.from)), Math.min(width, x(span.to))];
    if (right - left < 2) return null;
    const name = layerName(span.layer);
    const label = fitting(name, right - left - 4) === name ? name : fitting(String(span.layer), right - left - 4);
    return html`<g key=${span.from}>
      <rect x=${left} y="18" width=${right - left} height="16" fill="var(--panel)" stroke="var(--line)"><title>${name}</title></rect>
      <text x=${(left + right) / 2} y="30" text-anchor="middle" fill="var(--soft)">${label}</text>
    </g>`;
  });
}

function Lane({ lane, x, y, time, width, marked }) {
  const first = firstIndex(lane.calls, (call) => call.to >= time.from);
  const last = firstIndex(lane.calls, (call) => call.from > time.to);
  const bars = lane.calls.slice(first, last).map((call) => bar(call, x, width));
  const colour = COLOURS[lane.kind];
  const own = marked && lane.calls.includes(marked) ? bar(marked, x, width) : null;
  return html`<g>
    <text x="2" y=${y + 11} fill="var(--soft)">${fitting(lane.title, width - 4)}<title>${lane.title}</title></text>
    <path d=${outline(bars, y + NAME)} fill=${colour} opacity="0.35" />
    <path d=${edges(bars, y + NAME)} fill=${colour} />
    ${bars.map((each) => each.width > 40 && html`<text x=${each.left + 6} y=${y + NAME + 13}>${fitting(each.call.kernel, each.width - 10)}</text>`)}
    ${own && html`<rect x=${own.left} y=${y + NAME} width=${own.width} height=${BAR} fill="none" stroke="var(--ink)" stroke-width="1.5" />`}
  </g>`;
}

function bar(call, x, width) {
  const left = Math.max(0, x(call.from));
  return { call, left, width: Math.max(1, Math.min(width, x(call.to)) - left), isCut: x(call.from) < 0 };
}

// Bars as one path; of several in the same half pixel only the first.
function outline(bars, y) {
  return spaced(bars, (each) => each.left + each.width, 0.5).map((each) => rectangle(each.left, y, each.width)).join("");
}

// The beginnings of bars, which show where one ends and the next begins.
function edges(bars, y) {
  const begun = bars.filter((each) => !each.isCut);
  return spaced(begun, (each) => each.left, 2).map((each) => rectangle(each.left, y, Math.min(2, each.width))).join("");
}

// Bars whose `place` is more than `least` pixels behind that of the one before.
function spaced(bars, place, least) {
  const kept = [];
  for (const each of bars) {
    if (kept.length === 0 || place(each) > place(kept.at(-1)) + least) kept.push(each);
  }
  return kept;
}

function rectangle(left, y, width) {
  return `M${left.toFixed(1)} ${y}h${width.toFixed(1)}v${BAR}h-${width.toFixed(1)}z`;
}

function Counter({ counter, x, y, time, width }) {
  const most = Math.max(...counter.points.map(([, value]) => value), 1);
  const first = Math.max(0, firstIndex(counter.points, ([moment]) => moment > time.from) - 1);
  const last = firstIndex(counter.points, ([moment]) => moment > time.to);
  const bottom = y + NAME + AREA;
  const level = (value) => bottom - (value / most) * AREA;
  const clipped = (moment) => Math.min(width, Math.max(0, x(moment))).toFixed(1);
  const shown = counter.points.slice(first, last);
  const steps = shown.map(([moment, value]) => `H${clipped(moment)}V${level(value).toFixed(1)}`).join("");
  return html`<g>
    <text x="2" y=${y + 11} fill="var(--soft)">${fitting(counter.name, width - 130)}, at most ${bytes(most)}<title>${counter.name}</title></text>
    ${shown.length > 0 && html`<path d=${`M${clipped(shown[0][0])} ${bottom}${steps}H${clipped(time.end)}V${bottom}Z`} fill="var(--series-1)" opacity="0.35" />`}
    <path d=${`M0 ${bottom}H${width}`} stroke="var(--line)" />
  </g>`;
}

function fitting(text, width) {
  const letters = Math.floor(width / LETTER);
  return text.length <= letters ? text : letters < 3 ? "" : `${text.slice(0, letters - 1)}…`;
}
