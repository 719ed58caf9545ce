// Stages of the compilation: lines of the model after each pass, and what each pass changed.

export class Stages {
  #lists = [];

  constructor(passes) {
    this.passes = passes;
  }

  get count() {
    return this.passes.stages.length;
  }

  // Places of the lines after a stage; before the first there is none.
  lines(stage) {
    if (stage < 0) return [];
    this.#lists[stage] ??= applied(this.lines(stage - 1), this.passes.stages[stage].edits);
    return this.#lists[stage];
  }

  // Rows of the difference that a stage made: { kind: "same" | "removed" | "added", line }.
  difference(stage) {
    const before = this.lines(stage - 1);
    const rows = [];
    let at = 0;
    const keep = (end) => before.slice(at, end).forEach((line) => rows.push({ kind: "same", line }));
    for (const [place, removed, added] of this.passes.stages[stage].edits) {
      keep(place);
      before.slice(place, place + removed).forEach((line) => rows.push({ kind: "removed", line }));
      added.forEach((line) => rows.push({ kind: "added", line }));
      at = place + removed;
    }
    keep(before.length);
    return rows;
  }

  // Nodes after each stage, as `nodes` has them.
  all() {
    return Array.from({ length: this.count }, (_, at) => this.nodes(at));
  }

  // Nodes after a stage by their identity, which is their first output: { id, name, operator, outputs, inputs, line }.
  nodes(stage) {
    const nodes = new Map();
    for (const line of this.lines(stage)) {
      const node = this.passes.nodes[line];
      if (node === null) continue;
      const [name, operator, outputs, inputs] = node;
      const id = outputs[0] ?? name;
      nodes.set(id, { id, name, operator, outputs, inputs, line });
    }
    return nodes;
  }
}

function applied(before, edits) {
  const after = [];
  let at = 0;
  for (const [place, removed, added] of edits) {
    for (; at < place; at += 1) after.push(before[at]);
    after.push(...added);
    at = place + removed;
  }
  for (; at < before.length; at += 1) after.push(before[at]);
  return after;
}
