"""Comments in generated CUDA C for the steps that a kernel's author named."""

from __future__ import annotations

import re

from moec.targets.tvm.text.steps import STEP

_NAMED = re.compile(rf'^( *){STEP}\("([^"\n]*)"\);$', re.MULTILINE)


def with_step_comments(source: str) -> str:
    """The source with ``// name`` in place of the statement that names a step."""
    return _NAMED.sub(r"\1// \2", source)
