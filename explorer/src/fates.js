// What became of each node of the imported model.

// `stages`: for each a Map of id -> node. Returns [{ node, end }] in the model's order; `end` is the first stage whose
// results no longer need the node, null for one that is needed to the last. A pass that replaces nodes often leaves
// the old ones to a later pass that removes what is unused, so that absence alone would name the wrong pass.
export function fates(stages) {
  if (stages.length === 0) return [];
  const values = results(stages.at(-1));
  const needed = stages.map((nodes) => needs(nodes, values));
  return [...stages[0].values()].map((node) => {
    const end = needed.findIndex((ids, at) => at > 0 && !ids.has(node.id));
    return { node, end: end < 0 ? null : end };
  });
}

// Values that no node reads: after the last pass these are the results of the model, which all stages name alike.
function results(nodes) {
  const read = new Set([...nodes.values()].flatMap((node) => node.inputs));
  return [...nodes.values()].flatMap((node) => node.outputs).filter((value) => !read.has(value));
}

function needs(nodes, values) {
  const makers = new Map();
  for (const node of nodes.values()) for (const value of node.outputs) makers.set(value, node);
  const ids = new Set();
  const open = [...values];
  while (open.length) {
    const node = makers.get(open.pop());
    if (!node || ids.has(node.id)) continue;
    ids.add(node.id);
    open.push(...node.inputs);
  }
  return ids;
}
