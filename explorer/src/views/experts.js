// Experts: a map of layers and experts, the experts of one layer, and a card for each.
import { useState } from "preact/hooks";
import { html } from "../html.js";
import { bytes, count, digits, percent } from "../numbers.js";
import { layerName } from "../parts.js";
import { hasSection } from "../sections.js";
import { Table } from "../table.js";
import { became, ExpertCard } from "./expert_card.js";
import { MEASURES, scaleOf } from "./experts_colours.js";
import { ExpertsLayer } from "./experts_layer.js";
import { ExpertsMap } from "./experts_map.js";
import { Choice } from "./map.js";

function Experts({ data, parts: [chosenLayer, chosenExpert], link, go, report, subject }) {
  const { layers, profile, no_profile: reason } = data.experts;
  const [measure, setMeasure] = useState("bits");
  const names = layers.map((_, place) => nameOf(data, place));
  const place = chosenLayer === undefined ? null : Number(chosenLayer);
  const layer = place === null ? null : layers[place];
  const expert = chosenExpert === undefined ? null : layer?.experts.find((each) => String(each.expert) === chosenExpert);
  if (layer === undefined) return html`<h2>Experts</h2><p role="alert">There is no layer of experts ${chosenLayer}.</p>`;
  if (expert === undefined) return html`<h2>Experts</h2><p role="alert">${names[place]} has no expert ${chosenExpert}.</p>`;
  const options = Object.entries(MEASURES).filter(([, each]) => profile || !each.isMeasured).map(([name, each]) => [name, each.title]);
  const choose = (row, column) => go("experts", String(row), String(layers[row].experts[column].expert));
  const describe = (row, column) => `${names[row]}, ${inWords(layers[row].experts[column])}`;
  const cursor = expert && [place, layer.experts.indexOf(expert)];
  return html`<h2>Experts</h2>
    <p>${profile ? measuredBy(profile, measure) : noProfile(reason)}</p>
    ${options.length > 1 && html`<div class="controls"><${Choice} label="Colour" value=${measure} onChange=${setMeasure} options=${options} /></div>`}
    <${Legend} layers=${layers} measure=${measure} />
    <${ExpertsMap} names=${names.map((name) => name.replace(/^\D+/, ""))} byTokens=${profile && measure !== "tokens"} onChoose=${choose} ...${{ layers, measure, cursor, describe }} />
    ${expert && html`<${ExpertCard} name=${names[place]} measured=${layer.tokens !== null} ...${{ layer, expert, place, go, link }} />`}
    ${layer && !expert && html`<${ExpertsLayer} name=${names[place]} ...${{ layer, place, link, report, subject }} />`}
    ${!layer && html`<${Table} caption="Layers of experts" columns=${columnsOf(names, link)} rows=${layers.map((each, at) => ({ ...each, place: at }))} />`}`;
}

function measuredBy(profile, measure) {
  const data = profile.data.map((each) => `${each.name}, ${count(each.tokens)} tokens`).join("; ");
  const areas = measure === "tokens" ? "Colours go by tokens" : "Areas go by tokens, half a cell for the mean of its layer";
  return `${areas}, as ${profile.file} measured them: ${data}.`;
}

function noProfile(reason) {
  return `No tokens, routing weights and errors: ${reason}. To measure them: moec profile MODEL --data DATA -o P.moeprof, then moec explore ART --profile P.moeprof.`;
}

// The name of a layer of experts: its number in the model, or that of its MoE block where the map does not know it.
function nameOf({ layers }, place) {
  const part = layers?.parts.find((each) => each.block === place);
  return part && typeof part.layer === "number" ? layerName(part.layer) : `MoE block ${place}`;
}

function inWords(expert) {
  const facts = [
    `expert ${expert.expert}: ${became(expert)}`,
    expert.bits !== null && `${digits(expert.bits)} bits, ${bytes(expert.bytes)}`,
    expert.tokens !== undefined && `${count(expert.tokens)} tokens`,
    expert.error != null && `error ${percent(expert.error)}`,
  ];
  return facts.filter(Boolean).join("; ");
}

function Legend({ layers, measure }) {
  const all = layers.flatMap((layer) => layer.experts);
  const { colours, labels } = scaleOf(measure, all);
  const marks = [
    ["dropped", "×", all.some((expert) => expert.number === null)],
    ["merged", "◤", all.some((expert) => expert.with.length)],
    ["read when selected", "▁", all.some((expert) => expert.memory === "read")],
  ];
  return html`<ul class="legend">
    ${labels.map((label, at) => label && html`<li><span class="swatch" style=${`background: ${colours[at]}`}></span>${label}</li>`)}
    ${marks.filter(([, , isUsed]) => isUsed).map(([label, mark]) => html`<li><span class="swatch-mark">${mark}</span> ${label}</li>`)}
  </ul>`;
}

function columnsOf(names, link) {
  const of = (layer, has) => layer.experts.filter(has).length;
  const bits = (layer) => layer.experts.map((expert) => expert.bits).filter((value) => value !== null);
  return [
    { title: "Layer", value: (layer) => layer.place, show: (layer) => html`<a href=${link("experts", String(layer.place))}>${names[layer.place]}</a>` },
    { title: "Experts", isNumber: true, value: (layer) => new Set(layer.experts.map((expert) => expert.number).filter((number) => number !== null)).size },
    { title: "A token selects", isNumber: true, value: (layer) => layer.top_k, show: (layer) => layer.top_k ?? "?" },
    { title: "Fewest bits", isNumber: true, value: (layer) => Math.min(...bits(layer)), show: (layer) => (bits(layer).length ? digits(Math.min(...bits(layer))) : "–") },
    { title: "Most bits", isNumber: true, value: (layer) => Math.max(...bits(layer)), show: (layer) => (bits(layer).length ? digits(Math.max(...bits(layer))) : "–") },
    { title: "Dropped", isNumber: true, value: (layer) => of(layer, (expert) => expert.number === null) },
    { title: "Merged", isNumber: true, value: (layer) => of(layer, (expert) => expert.with.length > 0) },
    { title: "Error of output", isNumber: true, value: (layer) => layer.losses.at(-1)?.output_error, show: (layer) => (layer.losses.length ? percent(layer.losses.at(-1).output_error) : "–") },
  ];
}

export const expertsView = {
  name: "experts",
  title: "Experts",
  key: "e",
  sections: ["experts", "layers"],
  isFor: (index, subject) => hasSection(index, subject, "experts"),
  entries: (data) =>
    data.experts.layers.flatMap((layer, place) =>
      layer.experts.map((expert) => ({
        label: `${nameOf(data, place)}, expert ${expert.expert}`,
        kind: "expert",
        text: `${became(expert)} ${Object.values(expert.formats).join(" ")}`,
        path: ["experts", String(place), String(expert.expert)],
      })),
    ),
  Component: Experts,
};
