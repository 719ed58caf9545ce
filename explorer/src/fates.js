// What became of each node of the imported model.

// `stages`: for each a Map of id -> node. Returns [{ node, end }] in the model's order; `end` is the stage that removed
// the node, null for one that the last stage still has.
export function fates(stages) {
  const ends = new Map();
  stages.forEach((nodes, at) => {
    if (at === 0) return;
    for (const id of stages[at - 1].keys()) if (!nodes.has(id) && !ends.has(id)) ends.set(id, at);
  });
  return [...(stages[0]?.values() ?? [])].map((node) => ({ node, end: ends.get(node.id) ?? null }));
}
