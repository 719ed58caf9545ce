// Design: an FPGA project as processes and channels, with its use of the part, and waiting where it was simulated.
import { useMemo } from "preact/hooks";
import { GraphPane } from "../graph_pane.js";
import { html } from "../html.js";
import { layout } from "../layout.js";
import { count, digits, percent } from "../numbers.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";

function Design({ data, parts, go, link }) {
  const [name = data.projects[0].name, selected] = parts;
  const project = data.projects.find((each) => each.name === name);
  if (!project) return html`<p role="alert">There is no project ${name} in this artifact.</p>`;
  const report = project.report;
  const result = data.simulation?.find((each) => each.name === name);
  const simulated = result?.passed ? result : undefined;
  const channels = report.channels.map((channel) => ({ ...channel, ...useOf(channel, simulated) }));
  const processes = useMemo(() => processesOf(report, channels, simulated), [project, simulated]);
  return html`<h2>Design ${name}</h2>
    ${data.projects.length > 1 && html`<p>${data.projects.map((each) => html`<a href=${link("design", each.name)}>${each.name}</a> `)}</p>`}
    <${Summary} ...${{ report, simulated, name, link }} />
    ${result && !simulated && html`<p role="alert">The simulation failed: ${result.message}</p>`}
    ${simulated && html`<${Decider} ...${{ processes, channels, link, name }} />`}
    ${!result && html`<p class="soft">Not simulated: "moec simulate ART --json > S.json" and "moec explore ART --simulation S.json" show waiting.</p>`}
    ${[...new Set(processes.map((process) => process.region))].map((region) => html`<${Region} key=${region} title=${region || name} ...${{ channels, selected, simulated }} processes=${processes.filter((process) => process.region === region)} onSelect=${(id) => go("design", name, id)} />`)}
    <${ProcessTable} processes=${processes} simulated=${simulated} />
    <${Table} caption="Channels" columns=${channelColumns(simulated)} rows=${channels} />
    <${Cycles} cycles=${report.estimate.cycles} later=${simulated?.later_cycles} />
    <${Table} caption="Use of the part, predicted" columns=${resourceColumns(report.estimate)} rows=${Object.keys(report.estimate.resources)} />`;
}

function Summary({ report, simulated, name, link }) {
  const { part, clock_megahertz: clock, milliseconds, cycles, gigabytes_per_second: bandwidth } = report.estimate;
  return html`<p>
    ${report.node} on ${part} at ${clock} MHz. Predicted: ${count(cycles.total)} cycles, ${digits(milliseconds)} ms, bound by
    ${" "}${cycles.bound_by}; memory moves ${digits(bandwidth)} GB/s.
    ${simulated && html` Simulated: ${count(simulated.cycles)} cycles (prediction ${percent(simulated.estimated / simulated.cycles - 1)} off), results <span class="good">equal</span>.`}
    ${" "}<a href=${link("kernel", name)}>Its code</a>
  </p>`;
}

// What a simulation saw of a channel; of the copies of one, the most that one held and the words of all.
function useOf({ name }, simulated) {
  const copies = simulated?.channels.filter((each) => each.name === name || each.name.startsWith(`${name}[`)) ?? [];
  if (copies.length === 0) return {};
  return { peak: Math.max(...copies.map((copy) => copy.peak)), words: copies.reduce((sum, copy) => sum + copy.words, 0) };
}

// Processes that channels name and those that were simulated. Names of a whole model's are "REGION.PROCESS"; a block
// is one region.
function processesOf(report, channels, simulated) {
  const names = new Set(channels.flatMap(({ producer, consumer }) => [producer, consumer]));
  simulated?.processes.forEach((each) => names.add(each.name));
  return [...names].map((id) => {
    const end = id.lastIndexOf(".");
    const dsp = report.estimate.dsp_by_process[id] ?? null;
    return { id, region: id.slice(0, Math.max(0, end)), title: id.slice(end + 1), dsp, ...simulated?.processes.find((each) => each.name === id) };
  });
}

// The process that is busy or waits for memory most, and the channel through which others wait for it.
function Decider({ processes, channels, link, name }) {
  const work = (process) => (process.busy ?? 0) + (process.memory_stall ?? 0);
  const [slowest] = [...processes].sort((a, b) => work(b) - work(a));
  const waiting = (channel) => processes.find((each) => each.id === channel.consumer)?.read_stall ?? 0;
  const [channel] = channels.filter((each) => each.producer === slowest.id).sort((a, b) => waiting(b) - waiting(a));
  return html`<p class="remark">
    <a href=${link("design", name, slowest.id)}>${slowest.id}</a> decides: it works for ${count(slowest.busy)} cycles and waits
    ${" "}${count(slowest.memory_stall)} for memory, together the most of all.
    ${channel && html` ${channel.consumer} waits ${count(waiting(channel))} cycles to read, through ${channel.name} (depth ${channel.depth}, at most ${channel.peak} full).`}
  </p>`;
}

// Processes of one region of concurrent processes, with their channels as edges.
function Region({ title, processes, channels, selected, simulated, onSelect }) {
  const nodes = useMemo(() => nodesOf(processes, channels), [processes]);
  const plan = useMemo(() => layout([nodes]), [nodes]);
  if (nodes.size < 2) return null;
  const worst = Math.max(...processes.map((process) => (process.busy ?? 0) + (process.memory_stall ?? 0)));
  const kinds = new Map(processes.filter((process) => simulated && (process.busy ?? 0) + (process.memory_stall ?? 0) === worst).map(({ id }) => [id, "changed"]));
  const current = nodes.has(selected) ? selected : undefined;
  return html`<h3>${title}</h3>
    <${GraphPane} ...${plan} nodes=${nodes} ghosts=${new Map()} kinds=${kinds} selected=${current} onSelect=${onSelect} label=${`Processes of ${title}`} isFitted />
    ${current && html`<${ProcessCard} process=${processes.find(({ id }) => id === current)} channels=${channels} simulated=${simulated} />`}`;
}

function nodesOf(processes, channels) {
  const own = (end, id) => channels.filter((channel) => channel[end] === id).map(({ name }) => name);
  return new Map(processes.map(({ id, title }) => [id, { id, name: id, operator: title, outputs: own("producer", id), inputs: own("consumer", id) }]));
}

function ProcessCard({ process, channels, simulated }) {
  const list = (end) => channels.filter((channel) => channel[end] === process.id);
  const text = (channel) => `${channel.name.split(".").at(-1)}: ${channel.bits} bits, depth ${channel.depth}${channel.peak === undefined ? "" : `, at most ${channel.peak} full`}`;
  return html`<section class="card" aria-label="Selected process">
    <h3>${process.id}</h3>
    <p>${process.dsp === null ? "No DSP blocks are predicted for it." : `${process.dsp} DSP blocks, predicted.`}${simulated && ` Simulated: busy ${process.busy} cycles; waits ${process.read_stall} to read, ${process.write_stall} to write, ${process.memory_stall} for memory.`}</p>
    <dl>
      ${list("consumer").map((channel) => html`<div><dt>reads</dt><dd>${text(channel)}, from ${channel.producer}</dd></div>`)}
      ${list("producer").map((channel) => html`<div><dt>writes</dt><dd>${text(channel)}, to ${channel.consumer}</dd></div>`)}
    </dl>
  </section>`;
}

function ProcessTable({ processes, simulated }) {
  const waits = [["Busy", "busy"], ["Waits to read", "read_stall"], ["Waits to write", "write_stall"], ["Waits for memory", "memory_stall"], ["Ends at", "end"]];
  const columns = [
    { title: "Process", value: (process) => process.id },
    { title: "DSP", isNumber: true, value: (process) => process.dsp, show: (process) => process.dsp ?? "–" },
    ...(simulated ? waits.map(([title, key]) => ({ title, isNumber: true, value: (process) => process[key] ?? null })) : []),
  ];
  return html`<${Table} caption=${simulated ? "Processes; DSP blocks predicted, cycles simulated" : "Processes; DSP blocks predicted"} columns=${columns} rows=${processes} />`;
}

function channelColumns(simulated) {
  return [
    { title: "Channel", value: (channel) => channel.name },
    { title: "From", value: (channel) => channel.producer },
    { title: "To", value: (channel) => channel.consumer },
    { title: "Bits", isNumber: true, value: (channel) => channel.bits },
    { title: "Depth", isNumber: true, value: (channel) => channel.depth },
    ...(simulated
      ? [
          { title: "Most held", isNumber: true, value: (channel) => channel.peak ?? null, show: (channel) => (channel.peak === undefined ? "–" : `${channel.peak}${channel.peak === channel.depth ? " (full)" : ""}`) },
          { title: "Words", isNumber: true, value: (channel) => channel.words ?? null },
        ]
      : []),
  ];
}

const PHASES = {
  route: "Routing",
  normalize: "Normalising tokens",
  latents: "Normalising latents",
  first_weights: "First weights arrive",
  products: "Products",
  stalls: "Products wait",
  results: "Writing results",
};

// Cycles of a whole model by layer, and of a block by phase.
function Cycles({ cycles, later }) {
  if (!cycles.layers) return html`<${Phases} cycles=${cycles} />`;
  const rows = cycles.layers.map((layer, at) => ({ ...layer, at, later: later?.[at] }));
  const columns = [
    { title: "Layer", isNumber: true, value: (row) => row.at },
    { title: "Kind", value: (row) => row.kind },
    { title: "Cycles, predicted", isNumber: true, value: (row) => row.cycles },
    ...(later ? [{ title: "Cycles, simulated", isNumber: true, value: (row) => row.later }] : []),
    { title: "Beats of memory", isNumber: true, value: (row) => row.beats },
  ];
  return html`<${Table} caption="Layers" columns=${columns} rows=${rows} />`;
}

function Phases({ cycles }) {
  const columns = [
    { title: "Phase", value: (name) => PHASES[name] },
    { title: "Cycles", isNumber: true, value: (name) => cycles[name] },
    { title: "Share", isNumber: true, value: (name) => cycles[name] / cycles.total, show: (name) => percent(cycles[name] / cycles.total) },
  ];
  return html`<${Table} caption="Phases of a call, predicted" columns=${columns} rows=${Object.keys(PHASES).filter((name) => cycles[name])} />`;
}

function resourceColumns({ resources, available }) {
  const share = (name) => (available[name] ? resources[name] / available[name] : null);
  return [
    { title: "Resource", value: (name) => name },
    { title: "Used", isNumber: true, value: (name) => resources[name] },
    { title: "Of", isNumber: true, value: (name) => available[name] },
    { title: "Share", isNumber: true, value: share, show: (name) => (share(name) === null ? "–" : percent(share(name))) },
  ];
}

export const designView = {
  name: "design",
  title: "Design",
  key: "d",
  sections: ["projects", "simulation"],
  isFor: (index, subject) => hasSection(index, subject, "projects"),
  entries: ({ projects }) =>
    projects.flatMap(({ name, report }) =>
      report.channels.map((channel) => ({ label: channel.name, kind: "channel", path: ["design", name, channel.producer] })),
    ),
  Component: Design,
};
