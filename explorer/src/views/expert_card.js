// One expert: what became of it, its formats, what it loses, how it is used, and where its weights are.
import { html } from "../html.js";
import { bytes, count, digits, percent } from "../numbers.js";
import { useShown } from "../shown.js";
import { Table } from "../table.js";

export function ExpertCard({ layer, name, expert, place, go, link, measured }) {
  const last = layer.experts.length - 1;
  const at = layer.experts.indexOf(expert);
  const step = (by) => go("experts", String(place), String(layer.experts[at + by].expert));
  const shown = useShown(`${place}/${expert.expert}`);
  return html`<section class="card" ref=${shown}>
    <h3>${name}, expert ${expert.expert}</h3>
    <div class="controls">
      <button onClick=${() => step(-1)} disabled=${at === 0}>Previous</button>
      <button onClick=${() => step(1)} disabled=${at === last}>Next</button>
      <a href=${link("experts", String(place))}>All experts of the layer</a>
      <a href=${link("block", String(place))}>MoE block</a>
    </div>
    <dl class="facts">
      <${Fact} term="Now">${became(expert)}<//>
      <${Fact} term="Why">${expert.why}<//>
      <${Fact} term="Hidden units">${expert.hidden_units}<//>
      <${Fact} term="Size">${expert.bytes === null ? null : `${bytes(expert.bytes)}, ${digits(expert.bits)} bits per weight without scales`}<//>
      <${Fact} term="Tokens">${tokensOf(expert, layer)}<//>
      <${Fact} term="Routing weight">${expert.weight === undefined ? null : `${digits(expert.weight)} on average`}<//>
      <${Fact} term="Error">${errorOf(expert, measured)}<//>
      <${Fact} term="Memory">${expert.memory && MEMORY[expert.memory]}<//>
    </dl>
    ${Object.keys(expert.formats).length > 0 && html`<${Projections} expert=${expert} />`}
    <p class="soft">${layerLoss(layer)}</p>
  </section>`;
}

const MEMORY = {
  kept: "read when a run begins, and kept while there is room",
  read: "read from the file when a token selects it",
};

function Fact({ term, children }) {
  const [value] = [children].flat();
  return value == null ? null : html`<div><dt>${term}</dt><dd>${children}</dd></div>`;
}

export function became(expert) {
  if (expert.number === null) return "dropped: it is not in the artifact";
  const others = expert.with.length ? `, merged with ${expert.with.join(", ")}` : "";
  const kind = expert.bytes === null ? "; it has no weights of its own" : "";
  return `${expert.number === expert.expert ? "kept" : `kept as number ${expert.number}`}${others}${kind}`;
}

function tokensOf(expert, layer) {
  return expert.tokens === undefined ? null : `${count(expert.tokens)} of ${count(layer.tokens)} (${percent(expert.tokens / (layer.tokens || 1))})`;
}

function errorOf(expert, measured) {
  if (expert.number === null) return null;
  if (expert.error != null) return `${percent(expert.error)} of its output, by plain rounding on rows of the profile`;
  if (expert.with.length) return "not measured: the profile saw the experts before they were merged";
  return measured ? "not measured: the profile lacks its formats" : "not measured: give a profile with --profile";
}

function Projections({ expert }) {
  const rows = Object.entries(expert.formats).map(([weight, form]) => ({ weight, form, error: expert.errors?.[weight] ?? null }));
  const columns = [
    { title: "Projection", value: (row) => row.weight },
    { title: "Format", value: (row) => row.form },
    { title: "Error of output, if it alone is rounded", isNumber: true, value: (row) => row.error, show: (row) => (row.error === null ? "–" : percent(row.error)) },
  ];
  return html`<${Table} caption="Its projections" columns=${columns} rows=${rows} />`;
}

export function layerLoss(layer) {
  if (layer.losses.length === 0) return "No pass rounded this layer.";
  return layer.losses.map((loss) => `The whole layer, measured by ${loss.pass_name}: weights ${percent(loss.weight_error)}, output ${percent(loss.output_error)}.`).join(" ");
}
