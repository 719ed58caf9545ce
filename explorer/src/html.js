// Templates: `html` makes preact elements. Every value becomes text or an attribute, never markup.
import { h } from "preact";
import htm from "htm";

export const html = htm.bind(h);
