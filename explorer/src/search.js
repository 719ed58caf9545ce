// Search over everything that views name: layers, kernels, passes, experts, remarks.
import { useEffect, useState } from "preact/hooks";
import { address } from "./address.js";
import { Dialog } from "./dialog.js";
import { html } from "./html.js";

const MOST = 60; // results shown

export function Search({ report, views, place, close }) {
  const [entries, setEntries] = useState(null);
  const [query, setQuery] = useState("");
  const [selected, setSelected] = useState(0);
  useEffect(() => void collect(report, views, place.subject).then(setEntries), []);
  const results = entries === null ? [] : matching(entries, query);
  const follow = (entry) => {
    location.hash = address(place.subject, ...entry.path);
    close();
  };
  const onKeyDown = (event) => {
    if (event.key === "ArrowDown") setSelected(Math.min(selected + 1, results.length - 1));
    else if (event.key === "ArrowUp") setSelected(Math.max(selected - 1, 0));
    else if (event.key === "Enter" && results[selected]) follow(results[selected]);
    else return;
    event.preventDefault();
  };
  const onInput = (event) => {
    setQuery(event.target.value);
    setSelected(0);
  };
  return html`<${Dialog} title="Search" close=${close}>
    <input type="search" autofocus aria-label="Search" placeholder="kernel, layer, expert, pass, remark" ...${{ onInput, onKeyDown }} />
    <p role="status">${entries === null ? "Decoding ..." : `${results.length} of ${entries.length} entries`}</p>
    <ul class="results">
      ${results.slice(0, MOST).map(
        (entry, at) => html`<li aria-current=${at === selected ? "true" : undefined}>
          <a href=${address(place.subject, ...entry.path)} onClick=${close}><b>${entry.label}</b> <span>${entry.kind}</span></a>
        </li>`,
      )}
    </ul>
  <//>`;
}

// Entries of all views: { label, kind, text, path }, where `path` is [view, part, ...].
async function collect(report, views, subject) {
  const lists = await Promise.all(
    views.filter((view) => view.entries).map(async (view) => view.entries(await report.sections(view.isOfReport ? "report" : subject, view.sections))),
  );
  return lists.flat();
}

// Entries with every word of the query; those whose label begins with it first.
function matching(entries, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (entry) => {
    const text = `${entry.label} ${entry.kind} ${entry.text ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const first = (entry) => (entry.label.toLowerCase().startsWith(query.toLowerCase()) ? 0 : 1);
  return entries.filter(has).sort((a, b) => first(a) - first(b));
}
