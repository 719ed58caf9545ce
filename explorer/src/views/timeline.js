// Timeline: recorded runs by kernel, with memory and caches, and a table of kernels.
import { useMemo, useState } from "preact/hooks";
import { html } from "../html.js";
import { bytes, count, microseconds, percent } from "../numbers.js";
import { partName } from "../parts.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";
import { lanesOf, layersOf, movedPoints, placed, valueAt } from "../timeline_data.js";
import { useTimeWindow } from "../timeline_window.js";
import { useWidth } from "../width.js";
import { Choice } from "./map.js";
import { TimelinePicture } from "./timeline_picture.js";

const DISTURBED = 1.2; // kernels alone take at most about as long as a whole run

function Timeline({ data, parts: [place = "0"], go, link }) {
  const { timeline } = data;
  const [axis, setAxis] = useState("kernels");
  const run = timeline.cases[Number(place)];
  if (!run) return html`<h2>Timeline</h2><p role="alert">There is no run ${place} in this trace.</p>`;
  const names = timeline.cases.map((each, at) => [String(at), each.title]);
  const known = new Set((data.kernels ?? []).map((kernel) => kernel.name));
  return html`<h2>Timeline</h2>
    <div class="controls">
      ${names.length > 1 && html`<${Choice} label="Run" value=${place} options=${names} onChange=${(at) => go("timeline", at)} />`}
      <${Choice} label="Time" value=${axis} options=${[["kernels", "Kernels alone"], ["recorded", "As recorded"]]} onChange=${setAxis} />
    </div>
    <${Remarks} timeline=${timeline} />
    <p class="soft">${summary(timeline, run)}</p>
    <${Run} key=${`${place}/${axis}`} ...${{ run, go, link, known }} parts=${data.layers?.parts ?? []} gaps=${axis === "recorded"} />
    <${Table} caption=${`Kernels, measured: ${run.title}`} columns=${columnsOf(link, known)} rows=${run.kernels} />`;
}

function summary(timeline, run) {
  const fixed = run.counters.filter((counter) => counter.points.length === 1);
  const sizes = fixed.map((counter) => ` ${counter.name}: ${bytes(counter.points[0][1])}.`).join("");
  const isDisturbed = run.kernel_microseconds > DISTURBED * run.unrecorded;
  const warning = isDisturbed ? " The kernels took longer than a run that is not recorded: the machine was busy, so record it again." : "";
  return `Measured on ${timeline.machine}, ${timeline.threads} ${timeline.threads === 1 ? "thread" : "threads"}. ${run.title}: ${microseconds(run.unrecorded)}. Recorded, ${microseconds(run.microseconds)}, of which kernels take ${microseconds(run.kernel_microseconds)}; the rest is between them, and much of it is the recording.${warning}${sizes}`;
}

function Remarks({ timeline }) {
  if (timeline.is_own) return null;
  const { foreign } = timeline;
  const missing = foreign.length ? ` This artifact does not have ${foreign.length === 1 ? "the kernel" : "the kernels"} ${foreign.slice(0, 5).join(", ")}${foreign.length > 5 ? ` and ${foreign.length - 5} more` : ""}.` : "";
  return html`<p class="remark">The trace is of another artifact.${missing}</p>`;
}

function Run({ run, parts, gaps, go, link, known }) {
  const [frame, width] = useWidth();
  const [pointed, setPointed] = useState({ call: null, moment: null });
  const calls = useMemo(() => placed(run.calls, parts, gaps), []);
  const lanes = useMemo(() => lanesOf(calls), []);
  const layers = useMemo(() => layersOf(calls), []);
  const counters = useMemo(() => countersOf(run, calls, gaps), []);
  const end = gaps ? run.microseconds : (calls.at(-1)?.to ?? 0);
  const time = { ...useTimeWindow(Math.max(end, 1e-3)), end };
  const point = (call, moment) => setPointed({ call, moment });
  const open = (call, isTouch) => (isTouch || !known.has(call.kernel) ? point(call, call.from) : go("kernel", call.kernel));
  const step = (shift) => {
    const next = calls[Math.min(calls.length - 1, Math.max(0, calls.indexOf(pointed.call) + shift))];
    if (!next) return;
    point(next, next.from);
    if (next.from < time.from || next.to > time.to) time.show((next.from + next.to - (time.to - time.from)) / 2, time.to - time.from);
  };
  const onKeyDown = (event) => {
    const shift = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (shift) step(shift);
    else if (event.key === "Enter" && pointed.call) open(pointed.call, false);
    else return;
    event.preventDefault();
  };
  return html`<div class="controls">
      ${time.actions.map(([key, label, act]) => html`<button onClick=${act} aria-keyshortcuts=${key}>${label} <kbd>${key}</kbd></button>`)}
    </div>
    <div ref=${frame} class="timeline-frame" tabindex="0" role="group" aria-label="Calls; the arrow keys go from one to the next" onKeyDown=${onKeyDown}>
      <${TimelinePicture} title=${`${run.title}: kernels over time`} ...${{ width, lanes, layers, counters, time }} marked=${pointed.call} moment=${pointed.moment} onPoint=${point} onOpen=${open} />
    </div>
    <${Pointed} ...${pointed} ...${{ counters, link, known }} />`;
}

function countersOf(run, calls, gaps) {
  const changing = run.counters.filter((counter) => counter.points.length > 1);
  return changing.map((counter) => ({ ...counter, points: movedPoints(counter.points, calls, gaps) }));
}

// The call under the pointer, and the counters at its moment.
function Pointed({ call, moment, counters, link, known }) {
  if (moment === null) return html`<p class="soft pointed" aria-live="polite">Point at a call, or go from call to call with the arrow keys.</p>`;
  const sizes = counters.map(({ name, points }) => `${name} ${bytes(valueAt(points, moment) ?? 0)}`).join(", ");
  if (call === null) return html`<p class="soft pointed" aria-live="polite">${sizes || "No call"}</p>`;
  const name = known.has(call.kernel) ? html`<a href=${link("kernel", call.kernel)}>${call.kernel}</a>` : call.kernel;
  const work = call.bytes === null ? "" : `, ${bytes(call.bytes)} at ${(call.bytes / call.duration / 1e3).toPrecision(3)} GB/s`;
  const operations = call.operations === null ? "" : `, ${count(call.operations)} operations`;
  return html`<p class="pointed" aria-live="polite">
    ${name}: ${microseconds(call.duration)} from ${microseconds(call.start)} on${work}${operations}.
    ${" "}<span class="soft">${call.part ? partName(call.part) : call.lane}${call.node !== null && `, ${call.node}`}. ${sizes}</span>
  </p>`;
}

function columnsOf(link, known) {
  const name = (row) => (known.has(row.name) ? html`<a href=${link("kernel", row.name)}>${row.name}</a>` : row.name);
  return [
    { title: "Kernel", value: (row) => row.name, show: name },
    { title: "For", value: (row) => row.op ?? "sizes of tensors" },
    { title: "Calls", isNumber: true, value: (row) => row.calls },
    { title: "Total", isNumber: true, value: (row) => row.microseconds, show: (row) => microseconds(row.microseconds) },
    { title: "Share", isNumber: true, value: (row) => row.share, show: (row) => percent(row.share) },
    { title: "Median call", isNumber: true, value: (row) => row.median, show: (row) => microseconds(row.median) },
  ];
}

export const timelineView = {
  name: "timeline",
  title: "Timeline",
  key: "t",
  sections: ["timeline", "layers", "kernels"],
  isFor: (index, subject) => hasSection(index, subject, "timeline"),
  entries: ({ timeline }) => timeline.cases.map((run, place) => ({ label: run.title, kind: "recorded run", path: ["timeline", String(place)] })),
  Component: Timeline,
};
