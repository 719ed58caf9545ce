// Partners of lines: lines that a line comes from, over all levels, and lines that come from it.

export class Links {
  #children = new Map();
  #places; // for each level, Map of id -> numbers of its lines, from 1

  constructor({ levels, parents }) {
    this.levels = levels;
    this.parents = parents;
    for (const [id, coarser] of Object.entries(parents)) {
      for (const parent of coarser) this.#children.set(parent, [...(this.#children.get(parent) ?? []), Number(id)]);
    }
    this.#places = levels.map(({ lines }) => placesOf(lines));
  }

  // For each level the numbers of the lines that belong to one line; of the line's own level, its equals.
  partners(level, line) {
    const id = this.levels[level]?.lines[line - 1] ?? null;
    if (id === null) return this.levels.map(() => []);
    const ids = new Set([id, ...closure(id, (each) => this.parents[each] ?? []), ...closure(id, (each) => this.#children.get(each) ?? [])]);
    return this.#places.map((places) => [...ids].flatMap((each) => places.get(each) ?? []).sort((a, b) => a - b));
  }
}

function placesOf(lines) {
  const places = new Map();
  lines.forEach((id, at) => {
    if (id === null) return;
    if (!places.has(id)) places.set(id, []);
    places.get(id).push(at + 1);
  });
  return places;
}

function closure(start, next) {
  const reached = new Set();
  const open = [start];
  while (open.length) {
    for (const each of next(open.pop())) {
      if (reached.has(each)) continue;
      reached.add(each);
      open.push(each);
    }
  }
  return reached;
}
