// Roofline: kernels against the limits of a machine, measured or predicted, and advice.
import { useState } from "preact/hooks";
import { html } from "../html.js";
import { bytes, count, digits, microseconds, percent } from "../numbers.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";
import { KINDS, RooflinePicture } from "./roofline_picture.js";

function Roofline({ data, link }) {
  const { machines, runs, faults } = data.roofline;
  const [machine, setMachine] = useState(0);
  const [chosen, setChosen] = useState(0);
  const own = runs.filter((run) => run.machine === machine);
  const run = own[Math.min(chosen, own.length - 1)];
  return html`<h2>Roofline</h2>
    ${faults.map((fault) => html`<p class="remark">${sentence(fault)}</p>`)}
    ${run === undefined
      ? html`<p>Nothing is known of the time of its kernels. ${HOW}</p>`
      : html`<div class="controls">
            <${Select} label="Machine" value=${machine} onChange=${setMachine} options=${machines.map((each) => each.title)} />
            <${Select} label="Run" value=${own.indexOf(run)} onChange=${setChosen} options=${own.map((each) => each.title)} />
          </div>
          <${OneRun} key=${runs.indexOf(run)} machine=${machines[machine]} ...${{ run, link }} />`}`;
}

const HOW = "Measure with: moec bench ART --json > B.json, then moec explore ART --bench B.json.";

function sentence(text) {
  return `${text.slice(0, 1).toUpperCase()}${text.slice(1)}.`;
}

function Select({ label, value, onChange, options }) {
  if (options.length < 2) return html`<span>${label}: ${options[0]}</span>`;
  return html`<label>${label} <select value=${value} onChange=${(event) => onChange(Number(event.target.value))}>
    ${options.map((title, at) => html`<option value=${at}>${title}</option>`)}
  </select></label>`;
}

function OneRun({ machine, run, link }) {
  const [shown, setShown] = useState(null);
  const isDrawn = (kernel) => kernel.operations_per_byte !== null && kernel.operations_per_second !== null;
  const [drawn, rest] = [run.kernels.filter(isDrawn), run.kernels.filter((kernel) => !isDrawn(kernel))];
  const share = rest.reduce((sum, kernel) => sum + kernel.share_of_time, 0);
  return html`<p>${limits(machine)} ${times(run)}</p>
    <${AdviceList} ...${{ run, link }} />
    ${drawn.length > 0 && html`<${Legend} isMeasured=${run.measured} />
      <${RooflinePicture} ...${{ machine, run, kernels: drawn, link }} onShow=${setShown} />
      <p class="soft" role="status">${shown === null ? "Point at a kernel to see its figures; press it to see its code." : inWords(shown)}</p>`}
    ${rest.length > 0 && html`<p class="soft">Not in the picture: ${plural(rest.length, "kernel")} whose operations are not counted, ${percent(share)} of the time.</p>`}
    ${run.not_predicted.length > 0 && html`<p class="soft">Not predicted, because sizes are computed at run time: ${run.not_predicted.join(", ")}.</p>`}
    <${Table} caption=${`Kernels of the run, ${run.measured ? "measured" : "predicted"}`} columns=${columnsOf(run, link)} rows=${run.kernels} />`;
}

function limits(machine) {
  return `${machine.title} (${machine.source}): ${bytes(machine.bytes_per_second)} per second from memory.`;
}

function times(run) {
  const kernels = microseconds(run.kernel_microseconds);
  if (run.measured) return `Measured: the whole run took ${microseconds(run.microseconds)}; its kernels, timed one by one, ${kernels}.`;
  return `Predicted, not measured: kernels take ${kernels} at least. ${HOW}`;
}

function plural(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function AdviceList({ run, link }) {
  if (!run.advice.length) return null;
  return html`<h3>Advice</h3>
    <ul class="advice">
      ${run.advice.map(
        (each) => html`<li>
          ${each.text}
          <span class="soft">
            ${each.gain !== null && ` At most ${percent(each.gain)} of the time would be saved (predicted).`}
            ${each.exact ? " Results stay as they are." : " Results change."}
            ${each.options && html` Compile with <code>${each.options}</code>.`}
          </span>
          ${each.kernels.length > 0 && html`<div>${each.kernels.slice(0, 6).map((name) => html`<a class="kernel" href=${link("kernel", name)}>${name}</a> `)}
            ${each.kernels.length > 6 && html`<span class="soft">and ${each.kernels.length - 6} more</span>`}</div>`}
        </li>`,
      )}
    </ul>`;
}

function Legend({ isMeasured }) {
  const shape = isMeasured ? html`<circle cx="7" cy="7" r="5" />` : html`<path d="M1 7L7 1L13 7L7 13Z" />`;
  return html`<ul class="legend">
    ${Object.values(KINDS).map(
      ([title, colour]) => html`<li class=${isMeasured ? "kernel-point" : "kernel-point predicted"} style=${`--colour: ${colour}`}>
        <svg width="14" height="14" aria-hidden="true">${shape}</svg> ${title}, ${isMeasured ? "measured" : "predicted"}
      </li>`,
    )}
    <li>Size: share of the time</li>
  </ul>`;
}

function inWords(kernel) {
  const reached = kernel.share_of_roof === null ? "" : `, ${percent(kernel.share_of_roof)} of what ${kernel.limit} allows`;
  return `${kernel.name}: ${microseconds(kernel.microseconds)} (${percent(kernel.share_of_time)} of the time), ${digits(kernel.operations_per_byte)} operations per byte, ${count(kernel.operations_per_second)} per second on ${kernel.arithmetic}${reached}`;
}

function columnsOf(run, link) {
  const number = (title, name, show) => ({ title, isNumber: true, value: (kernel) => kernel[name], show: (kernel) => (kernel[name] === null ? "–" : show(kernel[name])) });
  return [
    { title: "Kernel", value: (kernel) => kernel.name, show: (kernel) => html`<a href=${link("kernel", kernel.name)}>${kernel.name}</a>` },
    number("Calls", "calls", digits),
    number(run.measured ? "Time, measured" : "Time, predicted", "microseconds", microseconds),
    number("Share of time", "share_of_time", percent),
    number("Operations", "operations", count),
    number("Bytes", "bytes", bytes),
    number("Operations per byte", "operations_per_byte", digits),
    number("Operations per second", "operations_per_second", count),
    number("Bytes per second", "bytes_per_second", bytes),
    ...(run.measured ? [number("Share of its roof", "share_of_roof", percent)] : []),
    { title: "Arithmetic", value: (kernel) => (kernel.operations === null ? "–" : kernel.arithmetic) },
    { title: "Limit", value: (kernel) => kernel.limit },
  ];
}

export const rooflineView = {
  name: "roofline",
  title: "Roofline",
  key: "r",
  sections: ["roofline"],
  isFor: (index, subject) => hasSection(index, subject, "roofline"),
  entries: ({ roofline }) => roofline.runs.flatMap((run) => run.advice.map((advice) => ({ label: advice.text, kind: "advice", path: ["roofline"] }))),
  Component: Roofline,
};
