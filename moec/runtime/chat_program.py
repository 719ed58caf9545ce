"""The program of :mod:`moec.runtime.chat_template`, run by :mod:`moec.common.child_program`."""

import functools
import json


class TemplateError(Exception):
    """Refusal by the template itself, through ``raise_exception``, or a text that is too long."""


def main(message: bytes) -> bytes:
    """Render conversations and return the texts as a JSON list.

    ``message``: a JSON object of ``template``, ``conversations`` (lists of messages with role and content),
    ``variables`` by name, and ``longest``, the most characters of a text.
    """
    asked = json.loads(message)
    template = _template(asked["template"])
    texts = []
    for messages in asked["conversations"]:
        text = template.render(messages=messages, add_generation_prompt=True, **asked["variables"])
        if len(text) > asked["longest"]:
            raise TemplateError(f"it makes {len(text)} characters, more than {asked['longest']}")
        texts.append(text)
    return json.dumps(texts).encode()


@functools.lru_cache(1)
def _template(text):
    """Compile a template."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse  # type: ignore[assignment]
    return environment.from_string(text)


def _refuse(message):
    raise TemplateError(str(message))
