// Kernels: one kernel at all its levels.
import { useState } from "preact/hooks";
import { html } from "../html.js";
import { hasSection } from "../sections.js";
import { TextPane } from "../text_pane.js";

function Kernel({ data, parts, go }) {
  const [name = data.kernels[0].name, level, line] = parts;
  const kernel = data.kernels.find((each) => each.name === name);
  const [hovered, setHovered] = useState(null);
  if (!kernel) return html`<p role="alert">There is no kernel ${name} in this artifact.</p>`;
  const levels = data.texts[name];
  return html`<h2>${name}</h2>
    <label>Kernel <select value=${name} onChange=${(event) => go("kernel", event.target.value)}>
      ${data.kernels.map((each) => html`<option>${each.name}</option>`)}
    </select></label>
    <p>${kernel.computes}</p>
    <div class="panes">
      ${levels.map(
        (each) => html`<section key=${`${name}/${each.level}`}>
          <h3>${each.level}</h3>
          <${TextPane}
            text=${each.text}
            language=${each.level}
            label=${`${each.level} of ${name}`}
            marked=${hovered === null ? [] : [hovered]}
            shown=${each.level === level ? Number(line) : undefined}
            onLine=${setHovered}
          />
        </section>`,
      )}
    </div>`;
}

export const kernelView = {
  name: "kernel",
  title: "Kernels",
  key: "k",
  sections: ["kernels", "texts"],
  isFor: (index, subject) => hasSection(index, subject, "kernels"),
  entries: ({ kernels }) =>
    kernels.map((kernel) => ({ label: kernel.name, kind: `kernel of ${kernel.op}`, text: kernel.computes, path: ["kernel", kernel.name] })),
  Component: Kernel,
};
