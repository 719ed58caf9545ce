"""The one exception a user of moec ever has to catch, :class:`MoecError`, and its kinds.

Every message answers four questions: where (file, node), what was found, what was expected, what to do.
"""

from __future__ import annotations


class MoecError(Exception):
    """Bad input or usage. The command line prints it as one line and ends with exit code 2."""


class UnsupportedError(MoecError):
    """The model is valid, but asks for something moec does not do (an operator, a type, control flow)."""


class VerificationError(MoecError):
    """The IR breaks one of its own rules: a defect of a pass or of a hand-written text, never of a user's model."""


class ArtifactError(MoecError):
    """A compiled artifact is truncated, altered, of another format version or for another machine."""


class DefectError(MoecError):
    """moec itself failed: nothing the user gave explains it. The command line ends with exit code 3."""


class InputError(MoecError):
    """A compiled model was called with the wrong names, dtypes, ranks or sizes."""
