// Passes: a slider over the passes that changed the model, with the difference as text and as a graph.
import { useMemo } from "preact/hooks";
import { Difference } from "../difference.js";
import { fates } from "../fates.js";
import { GraphPane } from "../graph_pane.js";
import { html } from "../html.js";
import { useViewKeys } from "../keys.js";
import { layout } from "../layout.js";
import { hasSection } from "../sections.js";
import { Stages } from "../stages.js";

function Passes({ data, parts, go, link }) {
  const stages = useMemo(() => new Stages(data.passes), [data.passes]);
  const all = useMemo(() => stages.all(), [stages]);
  const plan = useMemo(() => layout(all), [all]);
  const at = Math.max(0, Math.min(stages.count - 1, parts[0] === undefined || parts[0] === "" ? 0 : Number(parts[0]) || 0));
  const stage = data.passes.stages[at];
  const show = (place, id) => go("passes", String(Math.max(0, Math.min(stages.count - 1, place))), ...(id ? [id] : []));
  useViewKeys([
    ["[", "The pass before", () => show(at - 1, parts[1])],
    ["]", "The next pass", () => show(at + 1, parts[1])],
  ]);
  const nodes = all[at];
  const change = useMemo(() => changed(at > 0 ? all[at - 1] : new Map(), nodes), [all, at]);
  const selected = parts[1] ?? change.first;
  const rows = useMemo(() => stages.difference(at).map(({ kind, line }) => rowOf(data.passes, kind, line)), [stages, at]);
  return html`<h2>${stage.name}</h2>
    <div class="slider">
      <button onClick=${() => show(at - 1, parts[1])} disabled=${at === 0} aria-label="The pass before">←</button>
      <input type="range" min="0" max=${stages.count - 1} value=${at} aria-label="Pass" aria-valuetext=${stage.name}
        list="passes" onInput=${(event) => show(Number(event.target.value), parts[1])} />
      <button onClick=${() => show(at + 1, parts[1])} disabled=${at === stages.count - 1} aria-label="The next pass">→</button>
      <select value=${at} aria-label="Pass" onChange=${(event) => show(Number(event.target.value), parts[1])}>
        ${data.passes.stages.map((each, place) => html`<option value=${place}>${place + 1}. ${each.name}</option>`)}
      </select>
    </div>
    <p>
      Pass ${at + 1} of ${stages.count} that changed the model: ${stage.nodes} nodes after it;
      ${" "}<span class="good">${change.added} added</span>, <span class="bad">${change.removed.size} removed</span>,
      ${" "}${change.altered} changed, ${stage.retyped} values with another type.
    </p>
    ${stage.remarks.map((remark) => html`<p class="remark">${remark}</p>`)}
    <details><summary>Rules of ${stage.name}</summary><pre>${stage.rules}</pre></details>
    <div class="panes">
      <section><h3>Difference</h3>
        <${Difference} key=${at} rows=${rows} selected=${selected} onSelect=${(id) => show(at, id)} label=${`What ${stage.name} changed`} />
      </section>
      <section><h3>Graph after the pass</h3>
        <${GraphPane} ...${plan} nodes=${nodes} ghosts=${change.removed} kinds=${change.kinds} selected=${selected}
          onSelect=${(id) => show(at, id)} label=${`The graph after ${stage.name}`} />
      </section>
    </div>
    <${NodeCard} ...${{ nodes: all, at, id: selected, types: data.passes.types, kernels: data.kernels ?? [], link }} />
    <p class="soft">Passes that changed nothing: ${[...new Set(data.passes.unchanged)].join(", ")}.</p>`;
}

// A node of this stage or of the one before it: its operator, and each value with its type, producer and users.
function NodeCard({ nodes, at, id, types, kernels, link }) {
  const node = nodes[at].get(id) ?? nodes[at - 1]?.get(id);
  if (!node) return null;
  const here = nodes[at].has(id) ? nodes[at] : nodes[at - 1];
  const makerOf = (value) => [...here.values()].find((each) => each.outputs.includes(value));
  const usersOf = (value) => [...here.values()].filter((each) => each.inputs.includes(value));
  const computing = kernels.filter((kernel) => kernel.nodes.includes(node.name));
  const to = (each) => html`<a href=${link("passes", String(at), each.id)}>${each.operator} ${each.name}</a> `;
  return html`<section class="card" aria-label="Selected node">
    <h3>${node.operator} <span class="soft">${node.name}</span></h3>
    ${computing.length > 0 && at === nodes.length - 1 && html`<p>Computed by ${computing.map(({ name }) => html`<a href=${link("kernel", name)}>${name}</a> `)}</p>`}
    <dl>
      ${node.inputs.map((value) => {
        const maker = makerOf(value);
        return html`<div><dt>reads <code>${value}</code></dt><dd><code>${types[value] ?? ""}</code> ${maker ? html`from ${to(maker)}` : "an input or a constant"}</dd></div>`;
      })}
      ${node.outputs.map((value) => {
        const users = usersOf(value);
        return html`<div><dt>makes <code>${value}</code></dt><dd><code>${types[value] ?? ""}</code> ${users.length ? html`for ${users.slice(0, 12).map(to)}` : "for nobody here: an output"}${users.length > 12 ? `and ${users.length - 12} more` : ""}</dd></div>`;
      })}
    </dl>
  </section>`;
}

// What a pass did to nodes, by their identity; `first` is the first of them.
function changed(before, after) {
  const removed = new Map([...before].filter(([id]) => !after.has(id)));
  const kinds = new Map();
  for (const [id, node] of after) {
    if (!before.has(id)) kinds.set(id, "added");
    else if (before.get(id).line !== node.line) kinds.set(id, "changed");
  }
  const added = [...kinds.values()].filter((kind) => kind === "added").length;
  const first = [...kinds.keys()][0] ?? [...removed.keys()][0] ?? [...after.keys()][0];
  return { removed, kinds, added, altered: kinds.size - added, first };
}

function rowOf(passes, kind, line) {
  const node = passes.nodes[line];
  return { kind, text: passes.lines[line], id: node ? (node[2][0] ?? node[0]) : undefined };
}

export const passesView = {
  name: "passes",
  title: "Passes",
  key: "p",
  sections: ["passes", "kernels"],
  isFor: (index, subject) => hasSection(index, subject, "passes"),
  entries: ({ passes }) => [
    ...passes.stages.map((stage, at) => ({ label: stage.name, kind: "pass", text: stage.remarks.join(" "), path: ["passes", String(at)] })),
    ...fates(new Stages(passes).all()).map(({ node, end }) => ({
      label: node.name || node.id,
      kind: end === null ? "node of the model, kept" : `node of the model, replaced or removed by ${passes.stages[end].name}`,
      text: node.operator,
      path: ["passes", String(end ?? passes.stages.length - 1), node.id],
    })),
  ],
  Component: Passes,
};
