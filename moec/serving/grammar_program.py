"""The program of :mod:`moec.serving.grammars`, run by :mod:`moec.common.child_program`."""


def main(text: bytes, kind: str) -> bytes:
    """Compile a JSON schema or a grammar of llguidance. Returns the grammar in llguidance's form. Raises ValueError,
    whose text is the reason, for one that is wrong or that llguidance does not know."""
    from llguidance import LLMatcher

    content = text.decode()
    compiled = LLMatcher.grammar_from_json_schema if kind == "schema" else LLMatcher.grammar_from_lark
    grammar = compiled(content)
    is_wrong, reasons = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_wrong:
        raise ValueError(reasons[0])
    return grammar.encode()
