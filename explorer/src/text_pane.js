// A pane of text with numbered lines. Lines can be marked (partners of a line in another pane) and hovered.
import { EditorState, StateEffect, StateField } from "@codemirror/state";
import { Decoration, EditorView, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { useEffect, useRef } from "preact/hooks";
import { colouring } from "./colouring.js";
import { html } from "./html.js";

const setMarks = StateEffect.define();
const marked = Decoration.line({ class: "marked" });

const marks = StateField.define({
  create: () => Decoration.none,
  update(value, transaction) {
    for (const effect of transaction.effects) {
      if (effect.is(setMarks)) {
        const { doc } = transaction.state;
        const lines = effect.value.filter((line) => line >= 1 && line <= doc.lines);
        return Decoration.set(lines.map((line) => marked.range(doc.line(line).from)), true);
      }
    }
    return value.map(transaction.changes);
  },
  provide: (field) => EditorView.decorations.from(field),
});

// `marked`: numbers of marked lines, from 1. `shown`: line to scroll to. `onLine(line | null)`: the pointer or the
// cursor is on another line.
export function TextPane({ text, language, label, marked: lines = [], shown, onLine = () => {} }) {
  const element = useRef();
  const view = useRef();
  const listener = useRef();
  listener.current = onLine;
  useEffect(() => {
    view.current = new EditorView({ parent: element.current, state: stateOf(text, language, label, listener) });
    return () => view.current.destroy();
  }, [text, language]);
  useEffect(() => view.current.dispatch({ effects: setMarks.of(lines) }), [lines, text]);
  useEffect(() => {
    if (!shown || shown > view.current.state.doc.lines) return;
    const { from } = view.current.state.doc.line(shown);
    view.current.dispatch({ effects: EditorView.scrollIntoView(from, { y: "center" }) });
  }, [shown, text]);
  return html`<div class="text-pane" ref=${element}></div>`;
}

function stateOf(text, language, label, listener) {
  let last = null;
  const tell = (line) => {
    if (line !== last) listener.current((last = line));
  };
  return EditorState.create({
    doc: text,
    extensions: [
      lineNumbers(),
      highlightActiveLine(),
      EditorState.readOnly.of(true),
      EditorView.contentAttributes.of({ "aria-label": label }),
      marks,
      colouring(language),
      keymap.of([]),
      EditorView.domEventHandlers({
        mousemove(event, view) {
          const at = view.posAtCoords({ x: event.clientX, y: event.clientY });
          tell(at === null ? null : view.state.doc.lineAt(at).number);
        },
        mouseleave: () => tell(null),
      }),
      EditorView.updateListener.of((update) => {
        if (update.selectionSet) tell(update.state.doc.lineAt(update.state.selection.main.head).number);
      }),
    ],
  });
}
