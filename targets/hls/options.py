"""Options of an FPGA project other than its part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from moec.targets.hls.moe.exploration import Constraints


@dataclasses.dataclass(frozen=True)
class HlsOptions:
    """Options of an FPGA project.

    - ``calibration``: required; inputs of the model by name, the source of scales and of the testbenches' vectors.
    - ``max_tokens``: the most tokens of a block in one call; required where the model does not fix them.
    - ``max_length``: the most tokens of a sequence whose keys and values stay in the board's memory between calls. None
      means whole sequences in one call, or ``max_tokens`` if the model takes earlier keys.
    - ``weight_bits``: of the experts' weights.
    - ``constraints``: on the hardware.
    - ``by_block``: make a project of every block, even if one design could compute the whole model.
    """

    kind: ClassVar[str] = "hls"
    subject: ClassVar[str] = "calibration data and limits of hardware are for hls:PART"

    calibration: Mapping[str, np.ndarray[Any, Any]] | None = None
    max_tokens: int | None = None
    max_length: int | None = None
    weight_bits: Literal[4, 8] = 8
    constraints: Constraints = dataclasses.field(default_factory=Constraints)
    by_block: bool = False
