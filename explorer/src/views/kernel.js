// Kernels: one kernel, or one design for an FPGA, at all its levels. A line marks its partners in all other panes.
import { useMemo, useState } from "preact/hooks";
import { html } from "../html.js";
import { levelTitle } from "../levels.js";
import { Links } from "../links.js";
import { LoopPicture, LoopTree } from "../loops.js";
import { bytes } from "../numbers.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";
import { TextPane } from "../text_pane.js";

const GRAPHS = ["onnx", "operators"];

function Kernel({ data, parts, go, link }) {
  const all = codesOf(data);
  const [name = all[0].name, level, line] = parts;
  const code = all.find((each) => each.name === name);
  if (!code || !data.texts?.[name]) return html`<p role="alert">There is no kernel ${name} in this artifact.</p>`;
  return html`<h2>${name}</h2>
    <p>
      <select value=${name} aria-label="Kernel" onChange=${(event) => go("kernel", event.target.value)}>
        ${all.map((each) => html`<option>${each.name}</option>`)}
      </select>
      ${" "}${code.computes} · ${code.isDesign ? html`<a href=${link("design", name)}>its processes</a>` : html`called ${code.calls === 1 ? "once" : `${code.calls} times`} · <a href=${link("why", "kernel", name)}>why this kernel</a>`}
    </p>
    <${Levels} key=${name} ...${{ name, level, go }} line=${Number(line) || null} shown=${data.texts[name]} />`;
}

// Kernels, and designs for an FPGA, which have the fields of a kernel that the view shows.
function codesOf({ kernels = [], projects = [] }) {
  return [...kernels, ...projects.map(({ name, report }) => ({ name, computes: `Design of ${report.node}`, op: "a design", isDesign: true }))];
}

function Levels({ name, level, line, shown, go }) {
  const links = useMemo(() => new Links(shown), [shown]);
  const [hovered, setHovered] = useState(null); // [level, line]
  const [hidden, setHidden] = useState(new Set());
  const place = shown.levels.findIndex((each) => each.level === level);
  const chosen = place >= 0 && line ? [place, line] : null;
  const partners = useMemo(() => (hovered ?? chosen ? links.partners(...(hovered ?? chosen)) : []), [links, hovered, level, line]);
  const following = useMemo(() => (chosen ? links.partners(...chosen) : []), [links, level, line]);
  const select = (at, number) => go("kernel", name, shown.levels[at].level, String(number));
  const toggle = (each) => setHidden(new Set(hidden.has(each) ? [...hidden].filter((one) => one !== each) : [...hidden, each]));
  const isShown = ({ level: each }) => !hidden.has(each) || each === level;
  const tir = shown.levels.findIndex((each) => each.level === "tir");
  const isGraph = (at) => GRAPHS.includes(shown.levels[at].level);
  const panes = shown.levels.map((each, at) => isShown(each) && html`<section key=${each.level}>
    <h3>${levelTitle(each.level)}</h3>
    ${each.absent && html`<p class="soft">${each.text ? "No links" : "No text"}: ${each.absent}.</p>`}
    ${each.text && html`<${TextPane}
      text=${each.text}
      language=${isGraph(at) ? "ir" : each.level}
      label=${`${levelTitle(each.level)} of ${name}`}
      marked=${partners[at]}
      chosen=${chosen?.[0] === at ? line : null}
      shown=${chosen?.[0] === at ? line : following[at]?.[0]}
      onHover=${(number) => setHovered(number === null ? null : [at, number])}
      onSelect=${(number) => select(at, number)}
    />`}
  </section>`);
  return html`<p class="chips" role="group" aria-label="Levels">
      ${shown.levels.map((each) => html`<button aria-pressed=${isShown(each)} onClick=${() => toggle(each.level)}>${levelTitle(each.level)}</button>`)}
    </p>
    <div class="panes short">${panes.filter((_, at) => isGraph(at))}</div>
    <div class="panes">${panes.filter((_, at) => !isGraph(at))}</div>
    ${shown.resources.length > 0 && html`<${Resources} resources=${shown.resources} />`}
    ${shown.loops.length > 0 && html`<h3>Loops</h3>
      <${LoopTree} loops=${shown.loops} selected=${level === "tir" ? line : null} onSelect=${(number) => select(tir, number)} />
      <details><summary>The loop nest as a picture</summary><${LoopPicture} loops=${shown.loops} name=${name} /></details>`}
    ${shown.buffers.length > 0 && html`<${Table} caption="Tensors and buffers" columns=${BUFFERS} rows=${shown.buffers} />`}`;
}

const BUFFERS = [
  { title: "Name", value: (buffer) => buffer.name },
  { title: "Memory", value: (buffer) => buffer.scope },
  { title: "Shape", value: (buffer) => buffer.shape.join(" × ") },
  { title: "Type", value: (buffer) => buffer.dtype },
  { title: "Bytes", isNumber: true, value: (buffer) => buffer.bytes, show: (buffer) => (typeof buffer.bytes === "number" ? bytes(buffer.bytes) : buffer.bytes) },
];

// Registers, spills, shared memory and occupancy, where the compiler of the target reports them.
function Resources({ resources }) {
  const names = [...new Set(resources.flatMap((each) => Object.keys(each)))];
  const columns = names.map((name) => ({ title: name.replaceAll("_", " "), isNumber: typeof resources[0][name] === "number", value: (each) => each[name] ?? "–" }));
  return html`<${Table} caption="What the hardware gives it" columns=${columns} rows=${resources} />`;
}

export const kernelView = {
  name: "kernel",
  title: "Kernels",
  key: "k",
  sections: ["kernels", "projects", "texts"],
  isFor: (index, subject) => hasSection(index, subject, "texts"),
  entries: (data) =>
    codesOf(data).map((code) => ({ label: code.name, kind: code.isDesign ? "code of a design" : `kernel of ${code.op}`, text: code.computes, path: ["kernel", code.name] })),
  Component: Kernel,
};
