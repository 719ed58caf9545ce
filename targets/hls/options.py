"""What a user says about an FPGA project beyond its part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from moec.targets.hls.moe.exploration import Constraints


@dataclasses.dataclass(frozen=True)
class HlsOptions:
    """``calibration``: inputs of the model by name, which scales are taken from and testbenches are made of; needed.
    ``max_tokens``: of a block in one call, needed where the model does not fix it. ``max_length``: of a sequence whose
    keys and values stay in the board's memory between calls; None for whole sequences in one call, but where the model
    takes earlier keys, then ``max_tokens``. ``weight_bits``: of the experts' weights. ``constraints``: on the hardware.
    ``by_block``: every block is a project of its own, also where one design computes the whole model."""

    kind: ClassVar[str] = "hls"
    subject: ClassVar[str] = "calibration data and limits of hardware are for hls:PART"

    calibration: Mapping[str, np.ndarray[Any, Any]] | None = None
    max_tokens: int | None = None
    max_length: int | None = None
    weight_bits: Literal[4, 8] = 8
    constraints: Constraints = dataclasses.field(default_factory=Constraints)
    by_block: bool = False
