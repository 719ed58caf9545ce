// Why: the candidates for each kernel with the reason of each loser, and what passes remarked, near misses first.
import { html } from "../html.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";

function Why({ data, parts, link }) {
  const kernels = data.kernels ?? [];
  const remarks = data.remarks ?? [];
  const [kind, name] = parts;
  if (kind === "kernel") return html`<${Candidates} kernel=${kernels.find((each) => each.name === name)} name=${name} link=${link} />`;
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
    ${remarks.length === 0 && html`<p>No pass remarked on anything: nothing that looks like experts was left as it was.</p>`}
    ${warnings.length > 0 && html`<${Remarks} caption="Warnings" remarks=${warnings} />`}
    ${notes.length > 0 && html`<${Remarks} caption="Remarks of passes" remarks=${notes} />`}
    ${kernels.length > 0 && html`<${Table} caption="Kernels, and why each was chosen" columns=${columns} rows=${byCandidates(kernels)} />`}`;
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
  sections: ["kernels", "remarks"],
  isFor: (index, subject) => hasSection(index, subject, "kernels") || hasSection(index, subject, "remarks"),
  entries: ({ remarks = [] }) =>
    remarks.map((remark) => ({ label: remark.subject, kind: `remark of ${remark.pass_name}`, text: remark.message, path: ["why"] })),
  Component: Why,
};
