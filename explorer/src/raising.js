// Links from parts of the model to the evidence of raising: of its MoE block, or of a near miss among its operators.
import { html } from "./html.js";

// `of(part)`: { text, path } for a part with evidence, else null.
export function raisingOf({ moe_blocks, raised, unraised }) {
  const misses = new Map((unraised ?? []).map((miss, place) => [miss.node, place]));
  const names = new Set((raised ?? []).map((block) => block.name));
  const of = (part) => {
    const name = part.block === null ? null : moe_blocks?.[part.block]?.block;
    if (names.has(name)) return { text: "evidence", path: ["why", "block", name] };
    const node = part.nodes.find((each) => misses.has(each));
    return node === undefined ? null : { text: "not raised: why", path: ["why", "miss", String(misses.get(node))] };
  };
  return { isEmpty: names.size + misses.size === 0, of };
}

export function WhyLink({ found, link }) {
  return found && html`<a href=${link(...found.path)}>${found.text}</a>`;
}
