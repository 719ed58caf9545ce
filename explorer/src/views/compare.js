// Compare: several artifacts side by side, with their differences in bytes, error, kernels, texts and the model itself.
import { useEffect, useMemo, useState } from "preact/hooks";
import { differenceOf } from "../diff.js";
import { Difference } from "../difference.js";
import { html } from "../html.js";
import { levelTitle } from "../levels.js";
import { bytes, digits, percent } from "../numbers.js";
import { Stages } from "../stages.js";
import { Table } from "../table.js";

const SECTIONS = ["target", "kernels", "moe_blocks", "losses", "weights", "texts", "passes"];

function Compare({ report, parts, subject, link }) {
  const [all, setAll] = useState(null);
  const artifacts = report.index.artifacts;
  useEffect(() => void Promise.all(artifacts.map((_, at) => report.sections(at, SECTIONS))).then(setAll), []);
  if (all === null) return html`<h2>Compare</h2><p>Decoding ...</p>`;
  const shown = all.map((sections, at) => ({ at, title: artifacts[at].title, ...filled(sections) }));
  const other = Number(parts[0] ?? (subject === 0 ? 1 : 0));
  if (!shown[other]) return html`<p role="alert">This report has no artifact ${parts[0]}.</p>`;
  const pair = [shown[subject], shown[other]];
  if (parts[1] === "kernel") return html`<${KernelDifference} pair=${pair} name=${parts[2]} level=${parts[3]} link=${link} other=${other} />`;
  if (parts[1] === "model") return html`<${ModelDifference} pair=${pair} />`;
  const kernels = joined(pair, "kernels").sort((a, b) => isEqual(pair, a) - isEqual(pair, b));
  return html`<h2>Compare</h2>
    <${Table} caption="Artifacts; shares are of the first" columns=${summaryColumns(shown[0])} rows=${shown} />
    <p>
      Below: ${pair[0].title} and
      ${" "}${shown.filter((each) => each.at !== subject).map((each) => html`<a href=${link("compare", String(each.at))} aria-current=${each.at === other ? "true" : undefined}>${each.title}</a> `)}
      · <a href=${link("compare", String(other), "model")}>difference of the models</a>
    </p>
    <${Table} caption="MoE blocks" columns=${blockColumns(pair)} rows=${joined(pair, "moe_blocks")} />
    <${Table} caption="Kernels" columns=${kernelColumns(pair, link, other)} rows=${kernels} />`;
}

function filled(sections) {
  const { texts = {}, passes = null, target, ...lists } = sections;
  return { texts, passes, target, ...Object.fromEntries(Object.entries(lists).map(([name, list]) => [name, list ?? []])) };
}

function summaryColumns(first) {
  const size = (artifact) => artifact.weights.reduce((sum, weight) => sum + weight.bytes, 0);
  const error = (artifact) => (artifact.losses.length ? Math.max(...artifact.losses.map((loss) => loss.output_error)) : null);
  return [
    { title: "Artifact", value: (artifact) => artifact.title },
    { title: "Target", value: (artifact) => artifact.target },
    { title: "Weights", isNumber: true, value: size, show: (artifact) => `${bytes(size(artifact))} (${percent(size(artifact) / (size(first) || 1))})` },
    { title: "Largest error of a layer", isNumber: true, value: error, show: (artifact) => (error(artifact) === null ? "nothing rounded" : percent(error(artifact))) },
    { title: "MoE blocks", isNumber: true, value: (artifact) => artifact.moe_blocks.length },
    { title: "Kernels", isNumber: true, value: (artifact) => artifact.kernels.length },
    { title: "Passes that changed it", isNumber: true, value: (artifact) => artifact.passes?.stages.length ?? 0 },
  ];
}

// Entries of both artifacts by name: { name, sides: [entry or undefined, entry or undefined] }.
function joined(pair, list) {
  const names = [...new Set(pair.flatMap((artifact) => artifact[list].map((entry) => entry.name)))];
  return names.map((name) => ({ name, sides: pair.map((artifact) => artifact[list].find((entry) => entry.name === name)) }));
}

function isEqual(pair, { name }) {
  const [code, other] = pair.map((artifact) => codeOf(artifact.texts[name])[0]?.text);
  return code !== undefined && code === other;
}

// Levels of a kernel that are code, not nodes of a graph, and have a text.
function codeOf(kernel) {
  return (kernel?.levels ?? []).filter(({ level, text }) => text && level !== "onnx" && level !== "operators");
}

function blockColumns(pair) {
  const formats = (block) => (block ? Object.entries(block.formats).map(([name, all]) => `${name} ${[...new Set(all)].join(", ")}`).join("; ") : "none");
  const loss = (at, row) => pair[at].losses.filter((each) => each.layer === row.name).at(-1)?.output_error ?? null;
  const side = (at) => [
    { title: `Formats, ${pair[at].title}`, value: (row) => formats(row.sides[at]) },
    { title: `Experts, ${pair[at].title}`, isNumber: true, value: (row) => row.sides[at]?.num_experts ?? null },
    { title: `Error, ${pair[at].title}`, isNumber: true, value: (row) => loss(at, row), show: (row) => (loss(at, row) === null ? "–" : percent(loss(at, row))) },
  ];
  return [{ title: "Block", value: (row) => row.name }, ...side(0), ...side(1)];
}

function kernelColumns(pair, link, other) {
  const state = (row) => {
    if (!row.sides[0] || !row.sides[1]) return `only in ${pair[row.sides[0] ? 0 : 1].title}`;
    return isEqual(pair, row) ? "equal" : "differs";
  };
  const chosen = (at) => (row) => row.sides[at]?.candidates.find((each) => each.chosen)?.kernel ?? "–";
  return [
    { title: "Kernel", value: (row) => row.name, show: (row) => (row.sides[0] && row.sides[1] ? html`<a href=${link("compare", String(other), "kernel", row.name)}>${row.name}</a>` : row.name) },
    { title: "Text", value: state },
    { title: `Chosen, ${pair[0].title}`, value: chosen(0) },
    { title: `Chosen, ${pair[1].title}`, value: chosen(1) },
    { title: `Calls, ${pair[0].title}`, isNumber: true, value: (row) => row.sides[0]?.calls ?? null },
    { title: `Calls, ${pair[1].title}`, isNumber: true, value: (row) => row.sides[1]?.calls ?? null },
  ];
}

function KernelDifference({ pair, name, level, link, other }) {
  const levels = pair.map((artifact) => codeOf(artifact.texts[name]));
  const common = levels[0].map((each) => each.level).filter((each) => levels[1].some((one) => one.level === each));
  const current = common.includes(level) ? level : common[0];
  const texts = levels.map((each) => each.find((one) => one.level === current)?.text.split("\n") ?? []);
  const rows = useMemo(() => differenceOf(texts[0], texts[1]), [name, current]);
  if (current === undefined) return html`<p role="alert">No level of ${name} is in both artifacts.</p>`;
  return html`<h2>${name}: ${pair[0].title} and ${pair[1].title}</h2>
    <p>${common.map((each) => html`<a href=${link("compare", String(other), "kernel", name, each)} aria-current=${each === current ? "true" : undefined}>${levelTitle(each)}</a> `)}</p>
    <${Changes} rows=${rows} label=${`Difference of ${name}`} />`;
}

function ModelDifference({ pair }) {
  const rows = useMemo(() => differenceOf(...pair.map(lastLines)), [pair[0].at, pair[1].at]);
  return html`<h2>The model: ${pair[0].title} and ${pair[1].title}</h2>
    <p class="soft">As it was after the last pass.</p>
    <${Changes} rows=${rows} label="Difference of the models" />`;
}

function Changes({ rows, label }) {
  const changes = rows.filter((row) => row.kind !== "same").length;
  return html`<p>${changes === 0 ? "No line differs." : `${digits(changes)} of ${digits(rows.length)} lines differ.`}</p>
    <${Difference} rows=${rows} label=${label} onSelect=${() => {}} />`;
}

function lastLines({ passes }) {
  if (passes === null) return [];
  return new Stages(passes).lines(passes.stages.length - 1).map((line) => passes.lines[line]);
}

export const compareView = {
  name: "compare",
  title: "Compare",
  key: "c",
  sections: [],
  isFor: (index) => index.artifacts.length > 1,
  Component: Compare,
};
