// One part of the model: its weights and time, what it reads, and its kernels.
import { html } from "../html.js";
import { bytes } from "../numbers.js";
import { partName, partPath, sourceOfTimes, timeOf } from "../parts.js";
import { WhyLink } from "../raising.js";
import { Table } from "../table.js";

export function PartKernels({ data, part, at, link, why }) {
  const others = data.layers.parts;
  return html`<h2>${partName(part)}</h2>
    <p><a href=${link("map")}>All layers</a>${why && html` · <${WhyLink} found=${why} link=${link} />`}</p>
    <${PartFacts} ...${{ layers: data.layers, part, at, link }} />
    <h3>Kernels</h3>
    <${KernelTable} kernels=${data.kernels ?? []} names=${part.kernels} link=${link} />
    <p class="soft">${readers(others, part).length ? html`Its results go to ${partLinks(readers(others, part), others, link)}.` : "Its results leave the model."}</p>`;
}

export function PartFacts({ layers, part, at, link }) {
  const formats = Object.entries(part.formats).sort((a, b) => b[1] - a[1]);
  return html`<dl class="facts">
    <div><dt>Weights</dt><dd>${bytes(part.weight_bytes)}${part.shared_bytes > 0 && html`, and ${bytes(part.shared_bytes)} that an earlier part has`}</dd></div>
    <div><dt>Formats</dt><dd>${formats.length ? formats.map(([form, size]) => `${form} ${bytes(size)}`).join(", ") : "no weights"}</dd></div>
    <div><dt>Time</dt><dd>${timeOf(part, at)} <span class="soft">${sourceOfTimes(layers, at)}</span></dd></div>
    <div><dt>Reads</dt><dd>${part.reads.length ? partLinks(part.reads, layers.parts, link) : "inputs of the model"}</dd></div>
    <div><dt>Operators</dt><dd>${part.nodes.length}</dd></div>
  </dl>`;
}

export function readers(parts, part) {
  return parts.flatMap((other, place) => (other.reads.includes(part.place) ? [place] : []));
}

// Links to the parts with these numbers, of many only some.
export function partLinks(places, parts, link) {
  const shown = places.slice(0, 6).map((place, at) => html`${at > 0 && ", "}<a href=${link(...partPath(parts[place], place))}>${partName(parts[place])}</a>`);
  return html`${shown}${places.length > 6 && ` and ${places.length - 6} more`}`;
}

export function KernelTable({ kernels, names, link }) {
  const rows = names.map((name) => kernels.find((kernel) => kernel.name === name) ?? { name, op: "", computes: "", calls: 0 });
  if (rows.length === 0) return html`<p>No kernel of its own: the artifact computes this part in another way.</p>`;
  const columns = [
    { title: "Kernel", value: (kernel) => kernel.name, show: (kernel) => html`<a href=${link("kernel", kernel.name)}>${kernel.name}</a>` },
    { title: "For", value: (kernel) => kernel.op },
    { title: "Calls in a run", isNumber: true, value: (kernel) => kernel.calls },
    { title: "Computes", value: (kernel) => kernel.computes },
  ];
  return html`<${Table} caption="Kernels that compute this part" columns=${columns} rows=${rows} />`;
}
