// Differences of two lists of lines: a patience diff. Lines that both have once, in the same order, stay.

// Rows: { kind: "same" | "removed" | "added", text }.
export function differenceOf(before, after) {
  const rows = [];
  const push = (kind, lines) => lines.forEach((text) => rows.push({ kind, text }));
  let at = 0;
  let to = 0;
  for (const [place, newPlace] of [...anchors(before, after), [before.length, after.length]]) {
    let start = at;
    let newStart = to;
    while (start < place && newStart < newPlace && before[start] === after[newStart]) [start, newStart] = [start + 1, newStart + 1];
    let end = place;
    let newEnd = newPlace;
    while (start < end && newStart < newEnd && before[end - 1] === after[newEnd - 1]) [end, newEnd] = [end - 1, newEnd - 1];
    push("same", before.slice(at, start));
    push("removed", before.slice(start, end));
    push("added", after.slice(newStart, newEnd));
    push("same", before.slice(end, place + 1));
    [at, to] = [place + 1, newPlace + 1];
  }
  return rows;
}

// Places of unique common lines, increasing in both: the longest such list, by patience sorting.
function anchors(before, after) {
  const counts = countsOf(before);
  const newCounts = countsOf(after);
  const places = new Map(after.map((line, place) => [line, place]));
  const tops = [];
  before.forEach((line, place) => {
    if (counts.get(line) !== 1 || newCounts.get(line) !== 1) return;
    const newPlace = places.get(line);
    const pile = firstPile(tops, newPlace);
    const node = { place, newPlace, before: pile > 0 ? tops[pile - 1] : null };
    tops[pile] = node;
  });
  const results = [];
  for (let node = tops.at(-1) ?? null; node; node = node.before) results.push([node.place, node.newPlace]);
  return results.reverse();
}

function firstPile(tops, newPlace) {
  let low = 0;
  let high = tops.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (tops[middle].newPlace < newPlace) low = middle + 1;
    else high = middle;
  }
  return low;
}

function countsOf(lines) {
  const counts = new Map();
  for (const line of lines) counts.set(line, (counts.get(line) ?? 0) + 1);
  return counts;
}
