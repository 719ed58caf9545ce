// A picture in SVG with a title for screen readers and a button that saves it as a file of its own.
import { useRef } from "preact/hooks";
import { html } from "./html.js";

const COPIED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "paint-order", "font", "text-anchor", "dominant-baseline"];

export function Picture({ title, width, height, children, ...others }) {
  const element = useRef();
  return html`<figure class="picture">
    <svg ref=${element} role="img" aria-label=${title} viewBox=${`0 0 ${width} ${height}`} width=${width} height=${height} ...${others}>
      <title>${title}</title>
      ${children}
    </svg>
    <figcaption>
      ${title} <button class="quiet" onClick=${() => save(element.current, title)}>Save SVG</button>
    </figcaption>
  </figure>`;
}

// Writes styles into a copy of the picture, because a file of its own has no style sheet.
function save(svg, title) {
  const copy = svg.cloneNode(true);
  const originals = svg.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((node, at) => {
    const style = getComputedStyle(originals[at]);
    for (const name of COPIED) node.style.setProperty(name, style.getPropertyValue(name));
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const url = URL.createObjectURL(new Blob([copy.outerHTML], { type: "image/svg+xml" }));
  const link = Object.assign(document.createElement("a"), { href: url, download: `${title.replace(/[^\w.-]+/g, "-")}.svg` });
  link.click();
  URL.revokeObjectURL(url);
}
