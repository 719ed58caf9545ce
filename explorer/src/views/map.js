// Map: the model's layers in a row, each with its parts by weights or time. From there into a block or to its kernels.
import { useState } from "preact/hooks";
import { html } from "../html.js";
import { bytes } from "../numbers.js";
import { formatsOf, partName, partPath, sourceOfTimes, timeOf, weightsOf } from "../parts.js";
import { WhyLink, raisingOf } from "../raising.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";
import { LayersPicture, Legend } from "./map_picture.js";
import { PartKernels } from "./part_kernels.js";

function Map({ data, parts: [chosen], link, go, report, subject }) {
  const { layers } = data;
  const [measure, setMeasure] = useState("bytes");
  const [at, setAt] = useState(0);
  const raising = raisingOf(data);
  const numbered = layers.parts.map((part, place) => ({ ...part, place }));
  const part = chosen === undefined ? null : numbered[Number(chosen)];
  if (part === undefined) return html`<h2>Map</h2><p role="alert">There is no part ${chosen} in this model.</p>`;
  if (part !== null) return html`<${PartKernels} ...${{ data, part, at, link }} why=${raising.of(part)} />`;
  const byTime = measure === "time" && layers.cases.length > 0;
  const sized = numbered.map((each) => ({ ...each, size: byTime ? each.microseconds[at] : each.weight_bytes }));
  return html`<h2>Map</h2>
    <p>${summary(layers)}</p>
    <div class="controls">
      <${Choice} label="Height" value=${measure} onChange=${setMeasure} options=${[["bytes", "Weights"], ["time", "Time"]]} />
      ${layers.cases.length > 1 && html`<label>Run <select value=${at} onChange=${(event) => setAt(Number(event.target.value))}>
        ${layers.cases.map((run, place) => html`<option value=${place}>${run.title}</option>`)}
      </select></label>`}
    </div>
    ${measure === "time" && html`<p class="soft">${sourceOfTimes(layers, at)}${!hasSection(report.index, subject, "timeline") && " Kernels over time: moec bench ART --trace T.json, then moec explore ART --trace T.json."}</p>`}
    <${Legend} parts=${sized} isTime=${byTime} />
    <${LayersPicture} parts=${sized} isTime=${byTime} ...${{ link, go }} />
    <${Table} caption="Parts of the model, with the kernels that compute them" columns=${columnsOf(layers, at, link, raising)} rows=${numbered} />`;
}

function summary(layers) {
  const count = new Set(layers.parts.map((part) => part.layer).filter(Number.isInteger)).size;
  const blocks = layers.parts.filter((part) => part.block !== null).length;
  const total = layers.parts.reduce((sum, part) => sum + part.weight_bytes, 0);
  const stored = layers.stored_bytes ? `, ${bytes(layers.stored_bytes)} as kernels read them` : "";
  return `${plural(count, "layer")}, ${plural(blocks, "MoE block")}, ${bytes(total)} of weights${stored}.`;
}

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function columnsOf(layers, at, link, raising) {
  const run = layers.cases[at];
  const time = { title: run?.measured ? "Time, measured" : "Time, predicted", isNumber: true, value: (part) => part.microseconds[at], show: (part) => timeOf(part, at) };
  return [
    { title: "Part", value: (part) => part.place, show: (part) => html`<a href=${link(...partPath(part, part.place))}>${partName(part)}</a>` },
    { title: "Weights", isNumber: true, value: (part) => part.weight_bytes, show: weightsOf },
    ...(run ? [time] : []),
    { title: "Formats", value: formatsOf },
    { title: "Kernels", isNumber: true, value: (part) => part.kernels.length, show: (part) => html`<a href=${link("map", String(part.place))}>${part.kernels.length}</a>` },
    ...(raising.isEmpty ? [] : [{ title: "Why", value: (part) => raising.of(part)?.text ?? "", show: (part) => html`<${WhyLink} found=${raising.of(part)} link=${link} />` }]),
  ];
}

export function Choice({ label, value, options, onChange }) {
  return html`<fieldset class="choice">
    <legend>${label}</legend>
    ${options.map(
      ([name, title]) => html`<label><input type="radio" name=${label} checked=${name === value} onChange=${() => onChange(name)} />${title}</label>`,
    )}
  </fieldset>`;
}

export const mapView = {
  name: "map",
  title: "Map",
  key: "m",
  sections: ["layers", "kernels", "moe_blocks", "raised", "unraised"],
  isFor: (index, subject) => hasSection(index, subject, "layers"),
  entries: ({ layers }) => layers.parts.map((part, place) => ({ label: partName(part), kind: "part of the model", text: formatsOf(part), path: partPath(part, place) })),
  Component: Map,
};
