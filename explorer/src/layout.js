// Layout of a graph over all stages: a row and a column per node, which it keeps as long as it exists.
//
// Rows are longest paths from the inputs, in the union of the graphs of all stages, so that no node moves from one stage
// to the next. Columns follow iongraph's method (spidermonkey.dev, 2025-10-28): in the order of rows, each node goes under
// its producers, into the nearest free column. Linear in nodes and edges, without minimising crossings.

// `stages`: for each a Map of id -> { id, outputs, inputs }. Returns a Map of id -> { row, column } with `rows` and
// `columns`.
export function layout(stages) {
  const producers = union(stages);
  const rows = longestPaths(producers);
  const places = new Map();
  const taken = []; // of each row, its taken columns
  let columns = 0;
  for (const [id, row] of [...rows].sort((a, b) => a[1] - b[1])) {
    const above = producers.get(id).map((each) => places.get(each)).filter((place) => place && place.row < row);
    const wanted = above.length ? Math.round(above.reduce((sum, place) => sum + place.column, 0) / above.length) : 0;
    const column = nearestFree((taken[row] ??= new Set()), wanted);
    taken[row].add(column);
    places.set(id, { row, column });
    columns = Math.max(columns, column + 1);
  }
  return { places, rows: taken.length, columns };
}

// Producers of each node in any stage. A later edge that would close a cycle is left out of rows by `longestPaths`.
function union(stages) {
  const producers = new Map();
  for (const nodes of stages) {
    const makers = new Map();
    for (const node of nodes.values()) for (const value of node.outputs) makers.set(value, node.id);
    for (const node of nodes.values()) {
      if (!producers.has(node.id)) producers.set(node.id, new Set());
      const all = producers.get(node.id);
      for (const value of node.inputs) if (makers.has(value)) all.add(makers.get(value));
    }
  }
  return new Map([...producers].map(([id, all]) => [id, [...all]]));
}

// The row of each node: one more than that of its lowest producer. Depth first, without recursion.
function longestPaths(producers) {
  const rows = new Map();
  const open = new Set();
  for (const start of producers.keys()) {
    const stack = [start];
    while (stack.length) {
      const id = stack.at(-1);
      if (rows.has(id)) {
        stack.pop();
        continue;
      }
      const above = producers.get(id);
      const waiting = open.has(id) ? [] : above.filter((each) => !rows.has(each) && !open.has(each));
      if (waiting.length) {
        open.add(id);
        stack.push(...waiting);
        continue;
      }
      rows.set(id, above.reduce((most, each) => Math.max(most, (rows.get(each) ?? -1) + 1), 0));
      open.delete(id);
      stack.pop();
    }
  }
  return rows;
}

function nearestFree(taken, wanted) {
  for (let distance = 0; ; distance += 1) {
    if (!taken.has(wanted + distance)) return wanted + distance;
    if (wanted >= distance && !taken.has(wanted - distance)) return wanted - distance;
  }
}
