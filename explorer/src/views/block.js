// MoE blocks: one block with its router, experts, formats and kernels, what feeds it, and what passes said about it.
import { html } from "../html.js";
import { percent } from "../numbers.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";
import { KernelTable, PartFacts, partLinks, readers } from "./part_kernels.js";

function Block({ data, parts: [number = "0"], link, go }) {
  const blocks = data.moe_blocks;
  const block = blocks[Number(number)];
  if (!block) return html`<h2>MoE blocks</h2><p role="alert">There is no MoE block ${number} in this artifact.</p>`;
  const place = data.layers?.parts.findIndex((part) => part.block === Number(number)) ?? -1;
  const part = place < 0 ? null : { ...data.layers.parts[place], place };
  return html`<h2>${titleOf(number, part)}</h2>
    <div class="controls">
      <label>Block <select value=${number} onChange=${(event) => go("block", event.target.value)}>
        ${blocks.map((each, at) => html`<option value=${at}>${at}: ${short(each.name)}</option>`)}
      </select></label>
      <a href=${link("experts", number)}>Its experts</a>
      ${block.block != null && html`<a href=${link("why", "block", block.block)}>Why it was raised</a>`}
    </div>
    <${RouterFacts} block=${block} />
    <h3>Formats of experts</h3>
    <${FormatTable} block=${block} />
    <h3>Place in the model</h3>
    ${part ? html`<${PartFacts} layers=${data.layers} at=${0} ...${{ part, link }} /><${Follows} ...${{ data, part, link }} />` : html`<p>It stands in a body of the graph that the map does not divide.</p>`}
    <h3>Kernels</h3>
    <${KernelTable} kernels=${data.kernels ?? []} names=${part?.kernels ?? []} link=${link} />
    <h3>Losses</h3>
    <${Losses} losses=${(data.losses ?? []).filter((loss) => loss.layer === block.name)} />
    <h3>Remarks</h3>
    <${Remarks} remarks=${(data.remarks ?? []).filter((remark) => [block.name, block.block].includes(remark.subject))} />`;
}

function titleOf(number, part) {
  return part && typeof part.layer === "number" ? `MoE block ${number}, layer ${part.layer}` : `MoE block ${number}`;
}

function short(name) {
  return name.length > 60 ? `${name.slice(0, 60)}…` : name;
}

function RouterFacts({ block }) {
  const facts = [
    ["Node", block.name],
    ["Operator", block.op],
    ["Raised from", block.formulation ?? "not raised: the model has it in this form"],
    ["Router", block.router ?? "not an operator of its own"],
    ["Experts", `${block.num_experts ?? "?"}, of which a token selects ${block.top_k ?? "?"}`],
    ["Sizes", block.hidden_size === null ? null : `${block.hidden_size} inputs, ${block.intermediate_size ?? "?"} hidden units`],
    ["Activation", block.activation],
    ["Gate", block.gate_layout],
    ["Arithmetic", block.experts?.arithmetic],
  ];
  return html`<dl class="facts">
    ${facts.filter(([, value]) => value != null).map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

function FormatTable({ block }) {
  const rows = Object.entries(block.formats).flatMap(([weight, formats]) =>
    Object.entries(counted(formats)).map(([form, count]) => ({ weight, form, count })),
  );
  if (rows.length === 0) return html`<p>Weights of experts are computed, not stored.</p>`;
  const columns = [
    { title: "Weight", value: (row) => row.weight },
    { title: "Format", value: (row) => row.form },
    { title: "Experts", isNumber: true, value: (row) => row.count },
  ];
  return html`<${Table} caption="Experts in each format" columns=${columns} rows=${rows} />`;
}

function counted(values) {
  const counts = {};
  for (const value of values) counts[value] = (counts[value] ?? 0) + 1;
  return counts;
}

function Follows({ data, part, link }) {
  const places = readers(data.layers.parts, part);
  return places.length > 0 && html`<p class="soft">Its results go to ${partLinks(places, data.layers.parts, link)}.</p>`;
}

export function Losses({ losses }) {
  if (losses.length === 0) return html`<p>None: no pass changed its weights or rounded its activations.</p>`;
  const columns = [
    { title: "Pass", value: (loss) => loss.pass_name },
    { title: "Formats", value: (loss) => Object.entries(loss.formats).map(([name, formats]) => `${name} ${formats.join("+")}`).join(", ") },
    { title: "Arithmetic", value: (loss) => loss.arithmetic },
    { title: "Error of weights", isNumber: true, value: (loss) => loss.weight_error, show: (loss) => percent(loss.weight_error) },
    { title: "Error of output", isNumber: true, value: (loss) => loss.output_error, show: (loss) => percent(loss.output_error) },
  ];
  return html`<${Table} caption="Relative errors that passes measured on some of its experts, all at once" columns=${columns} rows=${losses} />`;
}

function Remarks({ remarks }) {
  if (remarks.length === 0) return html`<p>None.</p>`;
  const columns = [
    { title: "Pass", value: (remark) => remark.pass_name },
    { title: "Kind", value: (remark) => remark.severity },
    { title: "Remark", value: (remark) => remark.message },
  ];
  return html`<${Table} caption="What passes said about it" columns=${columns} rows=${remarks} />`;
}

export const blockView = {
  name: "block",
  title: "MoE blocks",
  key: "b",
  sections: ["moe_blocks", "layers", "kernels", "losses", "remarks"],
  isFor: (index, subject) => hasSection(index, subject, "moe_blocks"),
  entries: ({ moe_blocks }) => moe_blocks.map((block, at) => ({ label: block.name, kind: `MoE block ${at}`, text: `${block.router} ${block.activation}`, path: ["block", String(at)] })),
  Component: Block,
};
