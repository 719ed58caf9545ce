// The page's entry: read the document's index, then show the view that the address names.
import "./style.css";
import { render } from "preact";
import { html } from "./html.js";
import { App } from "./app.js";
import { Report } from "./report.js";

render(html`<${App} report=${new Report(document)} />`, document.getElementById("app"));
