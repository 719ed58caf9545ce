// A modal dialog: the browser keeps the focus in it and closes it by Esc.
import { useLayoutEffect, useRef } from "preact/hooks";
import { html } from "./html.js";

export function Dialog({ title, close, children }) {
  const element = useRef();
  useLayoutEffect(() => element.current.showModal(), []); // an effect would come after the next key
  const onClick = (event) => event.target === element.current && close();
  return html`<dialog ref=${element} aria-label=${title} onClose=${close} onClick=${onClick}>
    <h2>${title}</h2>
    ${children}
  </dialog>`;
}
