// The layers of a model as columns, each stacked by its parts.
import { html } from "../html.js";
import { bytes, microseconds, percent } from "../numbers.js";
import { COLOURS, formatsOf, layerName, partName, partPath } from "../parts.js";
import { Picture } from "../picture.js";
import { useWidth } from "../width.js";

const HEIGHT = 240;
const LEFT = 64; // space of the scale
const BOTTOM = 36;
const LEAST = 16; // width of a column; more columns than fit are scrolled
const MOST = 72;

export function Legend({ parts, isTime }) {
  const total = parts.reduce((sum, part) => sum + part.size, 0);
  const kinds = new Map();
  for (const part of parts) kinds.set(part.title, { part, size: (kinds.get(part.title)?.size ?? 0) + part.size });
  return html`<ul class="legend">
    ${[...kinds].map(
      ([title, { part, size }]) => html`<li>
        <span class="swatch" style=${`background: ${COLOURS[part.kind]}`}></span>${title}${" "}
        <span class="soft">${shown(size, isTime)}${total > 0 ? `, ${percent(size / total)}` : ""}</span>
      </li>`,
    )}
  </ul>`;
}

export function LayersPicture({ parts, isTime, link }) {
  const [frame, available] = useWidth();
  const columns = [...Map.groupBy(parts, (part) => part.layer).entries()];
  const width = Math.max(LEAST, Math.min(MOST, Math.floor((available - LEFT - 8) / columns.length)));
  const most = Math.max(...columns.map(([, own]) => own.reduce((sum, part) => sum + part.size, 0)), 0);
  const scale = most > 0 ? (HEIGHT - 12) / most : 0;
  const every = Math.ceil(30 / width); // numbers that do not touch
  const title = `Layers by ${isTime ? "time" : "bytes of weights"}`;
  return html`<div ref=${frame}>
    <${Picture} title=${title} width=${LEFT + columns.length * width + 8} height=${HEIGHT + BOTTOM}>
      ${[0, 0.5, 1].map((share) => html`<g key=${share}>
        <line x1=${LEFT} x2=${LEFT + columns.length * width} y1=${HEIGHT - share * most * scale} y2=${HEIGHT - share * most * scale} stroke="var(--line)" />
        <text x=${LEFT - 8} y=${HEIGHT - share * most * scale + 4} text-anchor="end" fill="var(--soft)">${shown(share * most, isTime)}</text>
      </g>`)}
      ${columns.map(([layer, own], at) => html`<${Column} key=${layer} ...${{ layer, own, scale, width, isTime, link }} x=${LEFT + at * width} isNamed=${isNamed(layer, every)} />`)}
      <text x=${LEFT} y=${HEIGHT + 33} fill="var(--soft)">layer</text>
    <//>
  </div>`;
}

function isNamed(layer, every) {
  return typeof layer === "string" || layer % every === 0;
}

function shortName(layer, width) {
  if (typeof layer === "number") return layer;
  return width > 44 ? layerName(layer).toLowerCase() : layer.slice(0, -3); // "in", "out"
}

function Column({ layer, own, scale, width, isTime, link, x, isNamed }) {
  let y = HEIGHT;
  return html`<g>
    ${own.map((part) => {
      const height = part.size * scale;
      y -= height;
      return html`<a key=${part.place} href=${link(...partPath(part, part.place))} tabindex="-1">
        <rect x=${x + 1} y=${y} width=${width - 2} height=${Math.max(0, height - 0.5)} fill=${COLOURS[part.kind]}>
          <title>${`${partName(part)}, ${shown(part.size, isTime)}, ${formatsOf(part)}`}</title>
        </rect>
      </a>`;
    })}
    ${isNamed && html`<text x=${x + width / 2} y=${HEIGHT + 16} text-anchor="middle" fill="var(--soft)">${shortName(layer, width)}</text>`}
  </g>`;
}

function shown(size, isTime) {
  return isTime ? microseconds(size) : bytes(size);
}
