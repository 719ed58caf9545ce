// Recorded calls as lanes: what part of the model each call belongs to, and its place on the axis of time.

// Calls with { part, lane, from, to }, in order. Lanes are kinds of parts. Without `gaps` calls follow each other directly.
export function placed(calls, parts, gaps) {
  const partOf = new Map(parts.flatMap((part) => part.nodes.map((node) => [node, part])));
  let end = 0;
  return calls.map((call) => {
    const part = partOf.get(call.node) ?? null;
    const from = gaps ? call.start : end;
    end = from + call.duration;
    const title = part?.title ?? (call.node === null ? "Sizes of tensors" : "Kernels");
    return { ...call, part, lane: title, kind: part?.kind ?? "rest", from, to: end };
  });
}

// Lanes in the order of their first calls: [{ title, kind, calls }].
export function lanesOf(calls) {
  const groups = Map.groupBy(calls, (call) => call.lane);
  return [...groups].map(([title, own]) => ({ title, kind: own[0].kind, calls: own }));
}

// Layers that calls belong to one after another: [{ layer, from, to }]. Calls without a layer belong to that around them.
export function layersOf(calls) {
  const spans = [];
  for (const call of calls.filter((each) => each.part !== null)) {
    if (spans.at(-1)?.layer === call.part.layer) spans.at(-1).to = call.to;
    else spans.push({ layer: call.part.layer, from: call.from, to: call.to });
  }
  return spans;
}

// Points of a counter on the axis of time that the calls are on. Without gaps, moments between calls are the beginning of
// the next one.
export function movedPoints(points, calls, gaps) {
  return gaps ? points : points.map(([moment, value]) => [moved(moment, calls), value]);
}

function moved(moment, calls) {
  const next = firstIndex(calls, (call) => call.start + call.duration > moment);
  if (next === calls.length) return calls.at(-1)?.to ?? 0;
  return calls[next].from + Math.max(0, moment - calls[next].start);
}

// The first place in an ordered list from which `holds` is true.
export function firstIndex(list, holds) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(list[middle])) high = middle;
    else low = middle + 1;
  }
  return low;
}

// The call of a lane at a moment, or the nearest within `reach`; null where there is none.
export function callAt(calls, moment, reach) {
  const next = firstIndex(calls, (call) => call.to >= moment);
  const near = [calls[next - 1], calls[next]].filter((call) => call && moment >= call.from - reach && moment <= call.to + reach);
  const distance = (call) => Math.max(call.from - moment, moment - call.to, 0);
  return near.sort((a, b) => distance(a) - distance(b))[0] ?? null;
}

// The value of a counter at a moment; null before its first point.
export function valueAt(points, moment) {
  const next = firstIndex(points, ([from]) => from > moment);
  return next === 0 ? null : points[next - 1][1];
}
