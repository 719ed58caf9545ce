// The experts of one layer as a table, and the pairs of them that tokens select together.
import { useEffect, useMemo, useState } from "preact/hooks";
import { html } from "../html.js";
import { bytes, count, digits, percent } from "../numbers.js";
import { Picture } from "../picture.js";
import { useShown } from "../shown.js";
import { Table } from "../table.js";
import { useWidth } from "../width.js";
import { became, layerLoss } from "./expert_card.js";

const STEPS = 6;
const LISTED = 20; // pairs in the table

export function ExpertsLayer({ layer, name, place, link, report, subject }) {
  const shown = useShown(place);
  return html`<h3 ref=${shown}>${name}</h3>
    <p>${layerLoss(layer)} <a href=${link("block", String(place))}>MoE block</a></p>
    <${Table} caption=${`Experts of ${name}`} columns=${columnsOf(layer, place, link)} rows=${layer.experts} />
    ${layer.tokens !== null && html`<${Pairs} key=${place} ...${{ layer, name, place, link, report, subject }} />`}`;
}

function columnsOf(layer, place, link) {
  const columns = [
    { title: "Expert", isNumber: true, value: (expert) => expert.expert, show: (expert) => html`<a href=${link("experts", String(place), String(expert.expert))}>${expert.expert}</a>` },
    { title: "Now", value: became },
    { title: "Bits", isNumber: true, value: (expert) => expert.bits, show: (expert) => (expert.bits === null ? "–" : digits(expert.bits)) },
    { title: "Formats", value: (expert) => Object.entries(expert.formats).map(([weight, form]) => `${weight} ${form}`).join(", ") },
    { title: "Size", isNumber: true, value: (expert) => expert.bytes, show: (expert) => (expert.bytes === null ? "–" : bytes(expert.bytes)) },
  ];
  if (layer.tokens === null) return columns;
  return [
    ...columns,
    { title: "Error of output", isNumber: true, value: (expert) => expert.error, show: (expert) => (expert.error == null ? "–" : percent(expert.error)) },
    { title: "Tokens", isNumber: true, value: (expert) => expert.tokens, show: (expert) => (expert.tokens === undefined ? "–" : count(expert.tokens)) },
    { title: "Routing weight", isNumber: true, value: (expert) => expert.weight, show: (expert) => (expert.weight === undefined ? "–" : digits(expert.weight)) },
  ];
}

function Pairs({ layer, name, place, link, report, subject }) {
  const [tables, setTables] = useState(null);
  useEffect(() => void report.section(subject, "pairs").then((value) => setTables(value ?? [])), []);
  if (tables === null) return html`<p>Decoding ...</p>`;
  const table = tables[place];
  if (!table) return null;
  const rows = pairsOf(table, layer.tokens);
  const ids = idsOf(layer, table.length);
  const expert = (at) => html`<a href=${link("experts", String(place), String(ids[at]))}>${ids[at]}</a>`;
  const columns = [
    { title: "Experts", value: (row) => row.a, show: (row) => html`${expert(row.a)} and ${expert(row.b)}` },
    { title: "Tokens", isNumber: true, value: (row) => row.tokens, show: (row) => count(row.tokens) },
    { title: "Times chance", isNumber: true, value: (row) => row.times, show: (row) => digits(row.times) },
  ];
  return html`<h3>Selected together</h3>
    <p class="soft">"Times chance" compares a pair with what it would be if tokens selected its two experts independently.</p>
    <${PairsPicture} table=${table} name=${name} />
    <${Table} caption=${`The ${Math.min(LISTED, rows.length)} pairs that most tokens select`} columns=${columns} rows=${rows.slice(0, LISTED)} />`;
}

// First ids of the experts that a profile measured: of all, or of those that are left.
function idsOf(layer, count) {
  const { experts } = layer;
  if (experts.length === count) return experts.map((expert) => expert.expert);
  return Array.from({ length: count }, (_, number) => experts.find((expert) => expert.number === number)?.expert ?? number);
}

// Pairs of experts with their tokens, the most frequent first.
function pairsOf(table, tokens) {
  const own = table.map((row, at) => row[at]);
  return table
    .flatMap((row, b) => row.slice(0, b).map((together, a) => ({ a, b, tokens: together, times: own[a] && own[b] ? (together * tokens) / (own[a] * own[b]) : 0 })))
    .filter((row) => row.tokens > 0)
    .sort((first, second) => second.tokens - first.tokens);
}

function PairsPicture({ table, name }) {
  const [frame, available] = useWidth();
  const side = Math.max(3, Math.min(16, Math.floor((Math.min(available, 640) - 40) / table.length)));
  const paths = useMemo(() => pathsOf(table, side), [table, side]);
  const size = 40 + side * table.length;
  const last = table.length - 1;
  return html`<div ref=${frame}>
    <${Picture} title=${`Pairs of experts of ${name}: stronger colours are selected together by more tokens`} width=${size} height=${size}>
      ${paths.map((path, at) => path && html`<path d=${path} fill=${`color-mix(in oklab, var(--series-1) ${Math.round((at / STEPS) * 100)}%, var(--panel))`} />`)}
      ${[0, last].map((expert) => html`<text x="32" y=${(expert + 1) * side} text-anchor="end" fill="var(--soft)">${expert}</text><text x=${40 + expert * side} y=${side * table.length + 16} fill="var(--soft)">${expert}</text>`)}
    <//>
  </div>`;
}

// One path for each level of tokens, on a scale of square roots.
function pathsOf(table, side) {
  const most = Math.sqrt(table.reduce((largest, row, at) => row.slice(0, at).reduce((a, b) => Math.max(a, b), largest), 1));
  const paths = Array.from({ length: STEPS + 1 }, () => []);
  table.forEach((row, b) =>
    row.slice(0, b).forEach((tokens, a) => paths[Math.round((Math.sqrt(tokens) / most) * STEPS)].push(`M${40 + a * side} ${b * side}h${side}v${side}h${-side}z`)),
  );
  return paths.map((own) => own.join(""));
}
