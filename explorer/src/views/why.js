// Why: blocks that were raised and near misses with their evidence, the candidates for each kernel with the reason of
// each loser, and what passes remarked.
import { html } from "../html.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";
import { BlockEvidence, NearMiss, Short, worst } from "./why_evidence.js";

const SECTIONS = ["kernels", "remarks", "raised", "unraised", "moe_blocks"];

function Why({ data, parts, link }) {
  const kernels = data.kernels ?? [];
  const remarks = data.remarks ?? [];
  const [kind, name] = parts;
  if (kind === "kernel") return html`<${Candidates} kernel=${kernels.find((each) => each.name === name)} name=${name} link=${link} />`;
  const raised = data.raised ?? [];
  const unraised = data.unraised ?? [];
  if (kind === "block") return html`<${OneBlock} ...${{ data, name, link }} />`;
  if (kind === "miss") return unraised[Number(name)] ? html`<${NearMiss} miss=${unraised[Number(name)]} link=${link} />` : html`<p role="alert">There is no near miss ${name} in this artifact.</p>`;
  const columns = [
    { title: "Kernel", value: (kernel) => kernel.name, show: (kernel) => html`<a href=${link("why", "kernel", kernel.name)}>${kernel.name}</a>` },
    { title: "Operator", value: (kernel) => kernel.op },
    { title: "Chosen", value: (kernel) => chosenOf(kernel)?.kernel ?? "–" },
    { title: "Because", isText: true, value: (kernel) => chosenOf(kernel)?.reason ?? "" },
    { title: "Others", isNumber: true, value: (kernel) => kernel.candidates.filter((each) => !each.chosen).length },
  ];
  const warnings = remarks.filter((remark) => remark.severity === "warning");
  const notes = remarks.filter((remark) => remark.severity !== "warning");
  return html`<h2>Why</h2>
    ${remarks.length === 0 && unraised.length === 0 && html`<p>No pass remarked on anything: nothing that looks like experts was left as it was.</p>`}
    ${unraised.length > 0 && html`<${NearMisses} misses=${unraised} link=${link} />`}
    ${raised.length > 0 && html`<${RaisedBlocks} blocks=${raised} link=${link} />`}
    ${warnings.length > 0 && html`<${Remarks} caption="Warnings" remarks=${warnings} />`}
    ${notes.length > 0 && html`<${Remarks} caption="Remarks of passes" remarks=${notes} />`}
    ${kernels.length > 0 && html`<${Table} caption="Kernels, and why each was chosen" columns=${columns} rows=${byCandidates(kernels)} />`}`;
}

function OneBlock({ data, name, link }) {
  const block = (data.raised ?? []).find((each) => each.name === name);
  const place = (data.moe_blocks ?? []).findIndex((each) => each.block === name);
  if (block) return html`<${BlockEvidence} ...${{ block, place, link }} />`;
  return html`<p role="alert">There is no evidence for ${name}: the model has this block as one operator, or has no such block.</p>`;
}

function RaisedBlocks({ blocks, link }) {
  const columns = [
    { title: "Block", value: (block) => block.name, show: (block) => html`<a href=${link("why", "block", block.name)}><${Short} text=${block.name} /></a>` },
    { title: "Found by", value: (block) => (block.isomorphic_to ? `being equal to ${block.isomorphic_to}` : block.reading), show: (block) => (block.isomorphic_to ? html`being equal to <${Short} text=${block.isomorphic_to} />` : block.reading) },
    { title: "Taken for", isText: true, value: (block) => block.proposal },
    { title: "Worst difference", value: (block) => worst(block.evidence) },
  ];
  return html`<${Table} caption="MoE blocks that were raised to one operator" columns=${columns} rows=${blocks} />`;
}

function NearMisses({ misses, link }) {
  const columns = [
    { title: "Node", value: (miss) => miss.node, show: (miss) => html`<a href=${link("why", "miss", String(miss.place))}><${Short} text=${miss.node} /></a>` },
    { title: "Experts", isNumber: true, value: (miss) => miss.experts, show: (miss) => miss.experts ?? "–" },
    { title: "Attempts", isNumber: true, value: (miss) => miss.attempts.length + miss.attempts_left_out },
    { title: "Not raised because", isText: true, value: (miss) => miss.reason, show: (miss) => html`<${Short} text=${miss.reason} />` },
  ];
  const rows = misses.map((miss, place) => ({ ...miss, place }));
  return html`<${Table} caption="Near misses: they resemble experts and were left as they are" columns=${columns} rows=${rows} />`;
}

function Remarks({ caption, remarks }) {
  const columns = [
    { title: "About", value: (remark) => remark.subject },
    { title: "Remark", isText: true, value: (remark) => remark.message },
    { title: "Pass", value: (remark) => remark.pass_name },
  ];
  return html`<${Table} caption=${caption} columns=${columns} rows=${remarks} />`;
}

// The winner of one kernel's candidates, then the others in the order in which they were asked.
function Candidates({ kernel, name, link }) {
  if (!kernel) return html`<p role="alert">There is no kernel ${name} in this artifact.</p>`;
  const order = [...kernel.candidates].sort((a, b) => b.chosen - a.chosen);
  return html`<h2>Why ${kernel.name}</h2>
    <p>${kernel.op}: ${kernel.computes} · <a href=${link("kernel", kernel.name)}>its text</a> · <a href=${link("why")}>all kernels</a></p>
    <ol class="candidates">
      ${order.map(
        (each) => html`<li class=${each.chosen ? "good" : ""}>
          <b>${each.kernel}</b> <span>${each.chosen ? "chosen" : each.eligible ? "possible, not chosen" : "not possible"}</span>
          <p>${each.reason}</p>
        </li>`,
      )}
    </ol>`;
}

// Kernels for which there was a choice first.
function byCandidates(kernels) {
  return [...kernels].sort((a, b) => b.candidates.length - a.candidates.length);
}

function chosenOf(kernel) {
  return kernel.candidates.find((each) => each.chosen);
}

export const whyView = {
  name: "why",
  title: "Why",
  key: "w",
  sections: SECTIONS,
  isFor: (index, subject) => SECTIONS.some((name) => name !== "moe_blocks" && hasSection(index, subject, name)),
  entries: ({ remarks, raised, unraised }) => [
    ...(raised ?? []).map((block) => ({ label: block.name, kind: "evidence for a block", text: `why raised ${block.proposal}`, path: ["why", "block", block.name] })),
    ...(unraised ?? []).map((miss, place) => ({ label: miss.node, kind: "near miss", text: `why not raised ${miss.reason}`, path: ["why", "miss", String(place)] })),
    ...(remarks ?? []).map((remark) => ({ label: remark.subject, kind: `remark of ${remark.pass_name}`, text: remark.message, path: ["why"] })),
  ],
  Component: Why,
};
