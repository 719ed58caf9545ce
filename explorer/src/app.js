// The frame around all views: navigation, search, keys, and the view that the address names.
import { useEffect, useState } from "preact/hooks";
import { address, parse } from "./address.js";
import { html } from "./html.js";
import { Help, useKeys } from "./keys.js";
import { Search } from "./search.js";
import { views } from "./views/index.js";

export function App({ report }) {
  const [place, followAddress] = useAddress();
  const [dialog, setDialog] = useState(null);
  const usable = views.filter((view) => view.isFor(report.index, place.subject));
  const view = usable.find((each) => each.name === place.view) ?? usable[0];
  const go = (name, ...parts) => {
    location.hash = address(place.subject, name, ...parts);
    followAddress(); // at once: the browser tells of it only after the next key
  };
  useKeys({ views: usable, go, open: setDialog, isOpen: dialog !== null });
  useEffect(() => {
    document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); // in a narrow window
    document.title = `${view.title} - ${titleOf(report.index, place.subject)}`;
  }, [view, place.subject]);
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <header>
      <h1>${titleOf(report.index, place.subject)}</h1>
      <${Subjects} index=${report.index} place=${place} />
      <button onClick=${() => setDialog("search")} aria-keyshortcuts="/">Search <kbd>/</kbd></button>
      <button onClick=${() => setDialog("help")} aria-label="Keys" aria-keyshortcuts="?"><kbd>?</kbd></button>
    </header>
    <nav aria-label="Views">
      ${usable.map((each) => html`<${Tab} view=${each} isCurrent=${each === view} subject=${place.subject} />`)}
    </nav>
    <main id="main" tabindex="-1">
      <${Loaded} key=${`${place.subject}/${view.name}`} ...${{ report, view, place, go }} />
    </main>
    ${dialog === "search" && html`<${Search} ...${{ report, views: usable, place }} close=${() => setDialog(null)} />`}
    ${dialog === "help" && html`<${Help} views=${usable} close=${() => setDialog(null)} />`}
  `;
}

function useAddress() {
  const [hash, setHash] = useState(location.hash);
  const follow = () => setHash(location.hash);
  useEffect(() => {
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return [parse(hash), follow];
}

function titleOf(index, subject) {
  return index.artifacts[subject]?.title ?? index.title;
}

function skip(event) {
  event.preventDefault(); // The address names a view, so that the link must not change it.
  document.getElementById("main").focus();
}

function Tab({ view, isCurrent, subject }) {
  const current = isCurrent ? "page" : undefined;
  return html`<a href=${address(subject, view.name)} aria-current=${current}>${view.title} <kbd>${view.key}</kbd></a>`;
}

function Subjects({ index, place }) {
  if (index.artifacts.length < 2) return null;
  const follow = (event) => (location.hash = address(Number(event.target.value), place.view, ...place.parts));
  return html`<label class="subject"
    >Artifact
    <select value=${place.subject} onChange=${follow}>
      ${index.artifacts.map((artifact, at) => html`<option value=${at}>${artifact.title}</option>`)}
    </select></label
  >`;
}

// Decodes the sections that a view needs, then shows it. A failure is shown in place of the view.
function Loaded({ report, view, place, go }) {
  const [data, setData] = useState(null);
  const [failure, setFailure] = useState(null);
  useEffect(() => {
    report.sections(view.isOfReport ? "report" : place.subject, view.sections).then(setData, (error) => setFailure(String(error)));
  }, []);
  if (failure) return html`<p role="alert">This part of the report cannot be read: ${failure}</p>`;
  if (data === null) return html`<p>Decoding ...</p>`;
  const link = (name, ...parts) => address(place.subject, name, ...parts);
  return html`<${view.Component} ...${{ data, report, go, link }} parts=${place.parts} subject=${place.subject} />`;
}
