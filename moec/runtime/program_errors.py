"""Errors of programs in the words of their callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moec.common.errors import ArtifactError, DefectError, InputError, MoecError

NOT_AS_LISTED = "the manifest lists others, so the artifact was altered: compile the model again"
_REQUIREMENT = "; expected "
"""Mark of messages by kernels' checks of sizes."""
_SIZE_CHECKS = ("Mismatched ", "Invalid ", "View with shape", "match_cast", "mismatch to ")
"""Marks of a ValueError of the runtime for a size that the program did not expect."""
_PARAMETER_CHECKS = ("loc=param[", "Invoking function main expects")
"""Marks of errors of a program whose parameters differ from its manifest's."""


def failed_run(error: Exception, where: str, shapes: Mapping[str, Sequence[int]]) -> MoecError:
    """Translate the error of a run on inputs of these shapes, by name. Only the program can relate some sizes, such as
    one that is the sum of two others; any other failure is not the caller's fault."""
    reason = " ".join(str(error).split())
    sizes = ", ".join(f"{name}{list(shape)}" for name, shape in shapes.items())
    if isinstance(error, ValueError) and any(check in reason for check in _SIZE_CHECKS):
        return InputError(f"the model cannot run on inputs of sizes {sizes}, which do not fit each other: {reason}")
    if "bad_alloc" in reason:
        return MoecError(f"there is not enough memory to run the model on inputs of sizes {sizes}")
    if any(check in reason for check in _PARAMETER_CHECKS):
        return ArtifactError(f"{where}: its program says {reason}; {NOT_AS_LISTED}")
    if isinstance(error, ValueError) and _REQUIREMENT in reason:
        return InputError(f"the model cannot run on inputs of sizes {sizes}: {reason}")
    return DefectError(f"the compiled program failed on inputs of sizes {sizes}: {type(error).__name__}: {reason}")
