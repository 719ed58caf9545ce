// Colours of words in text panes: comments, strings, numbers and the words of each language, on visible lines only.
import { Decoration, MatchDecorator, ViewPlugin } from "@codemirror/view";

const WORDS = {
  tir: "for|in|if|else|while|with|def|return|and|or|not|range",
  cuda: "for|if|else|while|return|const|void|int|float|half|unsigned|struct|template|typename|auto|__\\w+__|extern|asm|volatile",
  hls: "for|if|else|while|return|const|void|int|float|unsigned|struct|template|typename|auto|static|constexpr",
  llvm: "define|declare|ret|br|label|phi|load|store|call|fadd|fmul|fsub|fdiv|add|mul|sub|getelementptr|icmp|fcmp|select|alloca|switch|tail|bitcast|zext|sext|trunc|shufflevector|insertelement|extractelement",
  ir: "moec\\.\\w+",
};
const COMMENT = { tir: "#.*", ir: "#.*", cuda: "//.*", hls: "//.*", llvm: ";.*", asm: "#.*|//.*", ptx: "//.*", sass: "//.*|/\\*.*?\\*/" };
const CLASSES = ["comment", "string", "word", "number"];

export function colouring(language) {
  const words = WORDS[language];
  const parts = [COMMENT[language] ?? "(?!)", '"(?:[^"\\\\]|\\\\.)*"', words ? `\\b(?:${words})\\b` : "(?!)", "\\b(?:0x[\\da-f]+|\\d+(?:\\.\\d+)?(?:e[-+]?\\d+)?)\\b"];
  const regexp = new RegExp(parts.map((part) => `(${part})`).join("|"), "gi");
  const decorations = CLASSES.map((name) => Decoration.mark({ class: `code-${name}` }));
  const decorator = new MatchDecorator({
    regexp,
    decoration: (match) => decorations[match.slice(1).findIndex((group) => group !== undefined)],
  });
  return ViewPlugin.define(
    (view) => ({
      decorations: decorator.createDeco(view),
      update(update) {
        this.decorations = decorator.updateDeco(update, this.decorations);
      },
    }),
    { decorations: (plugin) => plugin.decorations },
  );
}
