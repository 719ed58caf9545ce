"""The passes of a pipeline that change what a file of weights says, for forms that write such files.

Other passes make a program of a model and leave its function alone. They are needed only to find the layers of experts
in a graph that does not name them, and may not decide what is written: an expert that no token can reach stays in the
file, and equal experts stay several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moec.common.errors import UnsupportedError

if TYPE_CHECKING:
    from moec.exporting.export_options import ExportOptions
    from moec.passes.framework.base import Pass

_CHANGING = (
    *("assign-bits", "cast-weights", "merge-experts", "prune-experts", "quantize-experts", "quantize-linears"),
    *("rescale-experts", "skip-experts", "tune-router"),
)
"""Passes whose results can be numbers and counts of a file."""
_ONLY_STORING = ("drop-dead-experts", "drop-zero-neurons", "fold-trivial-experts", "merge-equal-experts")
"""Passes that store fewer weights for the same function."""


@dataclasses.dataclass(frozen=True)
class FilePipeline:
    """The passes ``finding`` layers of experts, and those ``changing`` them afterwards."""

    finding: Sequence[Pass]
    changing: Sequence[Pass]


def changing_passes(options: ExportOptions) -> FilePipeline:
    """Read the pipeline and take the passes that matter for a file.

    Raises UnsupportedError for a pass that changes the function of a model in a way that no file of weights can say.
    """
    from moec.compiling.compile_options import with_profile
    from moec.passes.framework.shorthand import with_formats

    text = with_formats("O2" if options.passes is None else options.passes, options.experts, options.linears)
    chain = with_profile([text], options.profile)
    lossy = [step for step in chain if step.exactness == "lossy"]
    for step in lossy:
        if step.name not in _CHANGING:
            raise UnsupportedError(
                f"{step.name}: changes how a model computes, not its weights, and files for other programs have only "
                f"weights; leave it out ({', '.join(_CHANGING)} can be written)"
            )
    return FilePipeline(_before_lossy(chain), lossy)


def _before_lossy(chain: Sequence[Pass]) -> list[Pass]:
    """The exact passes before the first other one, without those that only store less."""
    finding: list[Pass] = []
    for step in chain:
        if step.exactness == "lossy":
            break
        if step.name not in _ONLY_STORING:
            finding.append(step)
    return finding
