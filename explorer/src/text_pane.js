// A pane of text with numbered lines. Lines can be marked (partners of a line in another pane), hovered and selected.
import { EditorState, StateEffect, StateField } from "@codemirror/state";
import { Decoration, EditorView, lineNumbers } from "@codemirror/view";
import { useEffect, useRef } from "preact/hooks";
import { colouring } from "./colouring.js";
import { html } from "./html.js";

const setMarks = StateEffect.define(); // [numbers of marked lines, number of the chosen line]
const marked = Decoration.line({ class: "marked" });
const chosenLine = Decoration.line({ class: "chosen" });

const marks = StateField.define({
  create: () => Decoration.none,
  update(value, transaction) {
    const effect = transaction.effects.find((each) => each.is(setMarks));
    if (!effect) return value;
    const { doc } = transaction.state;
    const [lines, chosen] = effect.value;
    const at = (decoration, line) => decoration.range(doc.line(line).from);
    const isLine = (line) => line >= 1 && line <= doc.lines;
    const all = lines.filter(isLine).map((line) => at(marked, line));
    return Decoration.set(isLine(chosen) ? [...all, at(chosenLine, chosen)] : all, true);
  },
  provide: (field) => EditorView.decorations.from(field),
});

// `marked`: numbers of marked lines, from 1. `chosen`: the selected line. `shown`: line to scroll to. `onHover(line)`:
// the pointer is on another line, null where on none; `onSelect(line)`: a line was clicked, or the cursor moved by keys.
export function TextPane({ text, language, label, marked: lines = [], chosen = null, shown, onHover, onSelect }) {
  const element = useRef();
  const view = useRef();
  const listeners = useRef();
  listeners.current = { onHover, onSelect };
  useEffect(() => {
    view.current = new EditorView({ parent: element.current, state: stateOf(text, language, label, listeners) });
    return () => view.current.destroy();
  }, [text, language]);
  useEffect(() => view.current.dispatch({ effects: setMarks.of([lines, chosen]) }), [lines, chosen, text]);
  useEffect(() => {
    if (!shown || shown > view.current.state.doc.lines) return;
    showLine(view.current, shown);
  }, [shown, text]);
  return html`<div class="text-pane" ref=${element}></div>`;
}

// Moves the pane's own text alone: CodeMirror's `scrollIntoView` would also move the page and the row of panes.
function showLine(view, number) {
  const scroller = view.scrollDOM;
  const { top, height } = view.lineBlockAt(view.state.doc.line(number).from);
  scroller.scrollTop = top - (scroller.clientHeight - height) / 2;
}

function stateOf(text, language, label, listeners) {
  let last = null;
  const hover = (line) => {
    if (line !== last) listeners.current.onHover?.((last = line));
  };
  return EditorState.create({
    doc: text.replace(/\n$/, ""),
    extensions: [
      lineNumbers(),
      EditorState.readOnly.of(true),
      EditorView.contentAttributes.of({ "aria-label": label, "aria-readonly": "true" }),
      marks,
      colouring(language),
      EditorView.domEventHandlers({
        mousemove(event, view) {
          const at = view.posAtCoords({ x: event.clientX, y: event.clientY });
          hover(at === null ? null : view.state.doc.lineAt(at).number);
        },
        mouseleave: () => hover(null),
      }),
      EditorView.updateListener.of((update) => {
        const { doc, selection } = update.state;
        if (update.selectionSet && selection.main.empty) listeners.current.onSelect?.(doc.lineAt(selection.main.head).number);
      }),
    ],
  });
}
