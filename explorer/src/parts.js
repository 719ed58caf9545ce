// Parts of the model, as the section `layers` has them: names, links, colours and times.
import { bytes, microseconds } from "./numbers.js";

export const COLOURS = {
  embedding: "var(--series-4)",
  attention: "var(--series-1)",
  recurrent: "var(--series-5)",
  dense: "var(--series-3)",
  moe: "var(--series-2)",
  shared: "var(--series-3)",
  head: "var(--series-4)",
  rest: "var(--series-6)",
};

export function layerName(layer) {
  return typeof layer === "number" ? `Layer ${layer}` : layer === "input" ? "Input" : "Output";
}

export function partName(part) {
  return `${layerName(part.layer)}: ${part.title}`;
}

// The page of a part: that of its MoE block, or its kernels.
export function partPath(part, place) {
  return part.block === null ? ["map", String(place)] : ["block", String(part.block)];
}

export function formatsOf(part) {
  const forms = Object.entries(part.formats).sort((a, b) => b[1] - a[1]);
  return forms.length ? forms.map(([form]) => form).join(", ") : "–";
}

export function weightsOf(part) {
  return part.weight_bytes ? bytes(part.weight_bytes) : part.shared_bytes ? "shared" : "–";
}

export function timeOf(part, at) {
  return part.microseconds.length ? microseconds(part.microseconds[at]) : "–";
}

// Says where times are from: they were measured, predicted, or are not known.
export function sourceOfTimes(layers, at) {
  const run = layers.cases[at];
  if (!run) return `No times: ${layers.no_times}.`;
  if (run.measured) {
    const kernels = layers.parts.reduce((sum, part) => sum + part.microseconds[at], 0);
    return `Measured: ${run.title}. The whole run took ${microseconds(run.microseconds)}, its kernels ${microseconds(kernels)}, which are shown.`;
  }
  const advice = layers.stored_bytes ? " Measured times: moec bench ART --json > B.json, then moec explore ART --bench B.json." : "";
  return `Predicted, not measured: the least time of ${run.title} by the limits of ${run.limits}.${advice}`;
}
