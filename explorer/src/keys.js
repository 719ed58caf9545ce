// Keys of the page. A view adds its own with `useViewKeys`; `?` lists all.
import { useLayoutEffect, useRef } from "preact/hooks";
import { Dialog } from "./dialog.js";
import { html } from "./html.js";

const viewKeys = new Map(); // key -> { label, act }, of the view that is shown

export function useKeys(state) {
  const latest = useRef();
  latest.current = state; // at once: an effect would come after the next key
  useLayoutEffect(() => {
    const onKey = (event) => {
      const { views, go, open, isOpen } = latest.current;
      if (isOpen || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
      const view = views.find((each) => each.key === event.key);
      if (event.key === "/") open("search");
      else if (event.key === "?") open("help");
      else if (viewKeys.has(event.key)) viewKeys.get(event.key).act();
      else if (view) go(view.name);
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
}

// Adds keys while a view is shown: `keys` is a list of [key, label, act].
export function useViewKeys(keys) {
  useLayoutEffect(() => {
    for (const [key, label, act] of keys) viewKeys.set(key, { label, act });
    return () => keys.forEach(([key]) => viewKeys.delete(key));
  });
}

function isTyping(element) {
  return element.matches?.("input, select, textarea, [contenteditable]:not(.cm-content)");
}

export function Help({ views, close }) {
  const rows = [
    ["/", "Search"],
    ["?", "These keys"],
    ["Esc", "Close a dialog"],
    ...views.filter((view) => !viewKeys.has(view.key)).map((view) => [view.key, view.title]),
    ...[...viewKeys].map(([key, { label }]) => [key, label]),
  ];
  return html`<${Dialog} title="Keys" close=${close}>
    <dl class="keys">
      ${rows.map(([key, label]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${label}</dd></div>`)}
    </dl>
  <//>`;
}
