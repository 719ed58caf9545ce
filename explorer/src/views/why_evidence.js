// The evidence for one MoE block, and what was tried on a region that resembles one and was left as it was.
import { html } from "../html.js";
import { digits } from "../numbers.js";
import { Table } from "../table.js";

const LONG = 240; // characters of a text that are shown
const SMALLEST = 1e-12; // differences below are recorded as this

export function BlockEvidence({ block, place, link }) {
  const { evidence } = block;
  const facts = [
    ["Found by", block.isomorphic_to ? html`being equal, except for its weights, to <a href=${link("why", "block", block.isomorphic_to)}><${Short} text=${block.isomorphic_to} /></a>` : block.reading],
    ["Taken for", block.proposal],
    ["Worst difference", worst(evidence)],
    ["Trials", trialCount(evidence)],
    ["Decisions", block.isomorphic_to ? "those of the block that it equals" : decisionCount(evidence)],
  ];
  return html`<h2>Why <${Short} text=${block.name} /> was raised</h2>
    <p><a href=${link("why")}>All blocks</a>${place >= 0 && html` · <a href=${link("block", String(place))}>its experts and kernels</a>`}</p>
    <p>Before the block was replaced, the model's own operators and the proposal ran on the same inputs and had to agree.</p>
    <${Facts} facts=${facts} />
    <${Evidence} evidence=${evidence} />`;
}

export function NearMiss({ miss, link }) {
  const facts = [
    ["Reason", html`<${Short} text=${miss.reason} />`],
    ["Experts", miss.experts === null ? null : miss.top_k === null ? miss.experts : `${miss.experts}; its selection takes ${miss.top_k}`],
  ];
  const tried = miss.attempts.length + miss.attempts_left_out;
  return html`<h2>Why <${Short} text=${miss.node} /> was not raised</h2>
    <p><a href=${link("why")}>All blocks and near misses</a></p>
    <p>This region resembles a mixture of experts. Its operators stay as the model has them.</p>
    <${Facts} facts=${facts} />
    <h3>What was tried</h3>
    ${tried === 0 && html`<p>Nothing: no operators around it have the form of a block that could be compared.</p>`}
    ${miss.attempts.map((attempt, at) => html`<${Attempt} attempt=${attempt} number=${at + 1} />`)}
    ${miss.attempts_left_out > 0 && html`<p>The record leaves out ${miss.attempts_left_out} more.</p>`}`;
}

// A text of the model, which may be of any length: the whole is its title.
export function Short({ text }) {
  return text.length > LONG ? html`<span title=${text}>${text.slice(0, LONG)}…</span>` : text;
}

function Attempt({ attempt, number }) {
  const facts = [
    ["Result", attempt.reason],
    ["Proposal", attempt.proposal || "none: the operators could not be read in this way"],
    ["Compared", attempt.proposals > 1 ? `${attempt.proposals} proposals on a few tokens; this one was nearest` : null],
    ["Worst difference", attempt.evidence && worst(attempt.evidence)],
  ];
  return html`<section class="card"><h4>${number}. ${attempt.reading}</h4>
    <${Facts} facts=${facts} />
    ${attempt.evidence && html`<details><summary>${trialCount(attempt.evidence)}</summary><${Evidence} evidence=${attempt.evidence} /></details>`}
  </section>`;
}

function Evidence({ evidence }) {
  const trials = [
    { title: "Trial", value: (trial) => trial.name },
    { title: "Runs", isNumber: true, value: (trial) => trial.runs },
    { title: "Tokens", isNumber: true, value: (trial) => trial.tokens },
    { title: "Worst difference", isNumber: true, value: (trial) => trial.difference ?? Infinity, show: difference },
    { title: "Allowed", isNumber: true, value: (trial) => trial.tolerance, show: (trial) => scientific(trial.tolerance) },
    ...(evidence.trials.some((trial) => trial.miniature) ? [{ title: "On", value: (trial) => (trial.miniature ? "narrow copy" : "block") }] : []),
    ...(evidence.trials.some((trial) => trial.failure) ? [{ title: "Note", isText: true, value: (trial) => trial.failure && `the model's own operators fail: ${trial.failure}` }] : []),
  ];
  const rows = evidence.decisions.flatMap((decision) => decision.sides.map((side) => ({ ...side, decision })));
  const decisions = [
    { title: "Decision", value: ({ decision }) => decision.node, show: ({ decision }) => html`${decision.node}${decision.others > 0 && html` <span class="soft">and ${decision.others} alike</span>`}` },
    { title: "Operator", value: ({ decision }) => decision.operator },
    { title: "Side", value: (side) => side.condition },
    { title: "Seen", isText: true, value: seen, show: (side) => html`<span class=${side.seen === "unseen" ? "bad" : ""}>${seen(side)}</span>` },
  ];
  return html`${evidence.assumed.length > 0 && html`<h3>Assumed, because no trial can show it</h3><ul>${evidence.assumed.map((each) => html`<li>${each}</li>`)}</ul>`}
    ${rows.length > 0 && html`<${Table} caption="Both sides of every decision" columns=${decisions} rows=${rows} />`}
    ${evidence.decisions_left_out > 0 && html`<p>The record leaves out ${evidence.decisions_left_out} more kinds of decisions; each of their sides was seen or excluded.</p>`}
    <${Table} caption="Trials; differences are relative to the largest entry of a row" columns=${trials} rows=${evidence.trials} />`;
}

function Facts({ facts }) {
  return html`<dl class="facts">
    ${facts.filter(([, value]) => value != null).map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

function seen(side) {
  if (side.seen === "trial") return `in the trial '${side.by}'`;
  if (side.seen === "excluded") return `not needed: ${side.by}`;
  return side.seen === "unseen" ? "no: no trial reached it" : "only where the model's own operators fail";
}

function difference(trial) {
  if (trial.difference !== null) return scientific(trial.difference);
  return trial.failure ? "–" : "without bound";
}

export function worst(evidence) {
  const where = evidence.worst_trial && ` in the trial '${evidence.worst_trial}'`;
  const amount = evidence.difference === null ? "without bound" : scientific(evidence.difference);
  return `${amount}${where}; ${scientific(evidence.tolerance)} is allowed`;
}

function scientific(value) {
  return value <= SMALLEST ? "at most 1e-12" : digits(value);
}

function trialCount(evidence) {
  const runs = evidence.trials.reduce((sum, trial) => sum + trial.runs, 0);
  return `${runs} ${runs === 1 ? "trial" : "trials"} of ${evidence.trials.length} ${evidence.trials.length === 1 ? "kind" : "kinds"}`;
}

function decisionCount(evidence) {
  const total = evidence.decisions.reduce((sum, decision) => sum + 1 + decision.others, 0);
  const open = evidence.decisions.filter((decision) => decision.sides.some((side) => side.seen === "unseen")).length;
  if (total === 0) return "none: the block computes the same formula for all inputs";
  return open ? `${total}, of which ${open} have a side that no trial reached` : `${total}; no side is left that a trial did not reach and that inputs can take`;
}
