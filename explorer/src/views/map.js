// Map: the model's layers in a row, with their weights, time and format. From there into a block or a kernel.
import { html } from "../html.js";
import { bytes } from "../numbers.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";

function Map({ data, link }) {
  const columns = [
    { title: "Part", value: (layer) => layer.title },
    { title: "Kind", value: (layer) => layer.kind },
    { title: "Weights", isNumber: true, value: (layer) => layer.weight_bytes, show: (layer) => bytes(layer.weight_bytes) },
    { title: "Kernels", value: (layer) => layer.kernels.join(" "), show: (layer) => links(layer.kernels, link) },
  ];
  return html`<h2>Map</h2>
    <${Table} caption="Parts of the model" columns=${columns} rows=${data.layers.parts} />`;
}

function links(kernels, link) {
  return kernels.map((name) => html`<a href=${link("kernel", name)}>${name}</a> `);
}

export const mapView = {
  name: "map",
  title: "Map",
  key: "m",
  sections: ["layers"],
  isFor: (index, subject) => hasSection(index, subject, "layers"),
  entries: ({ layers }) => layers.parts.map((layer) => ({ label: layer.title, kind: layer.kind, path: ["map", layer.title] })),
  Component: Map,
};
