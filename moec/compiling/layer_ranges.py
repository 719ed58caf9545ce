"""Layers of pipeline stages, as text: a number of stages, or the layers of each, such as ``0-11,12-23``."""

from __future__ import annotations

import dataclasses
import re

from moec.common.arguments import shown
from moec.common.errors import MoecError

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
EXPECTED = "expected a number of stages from 2 up, or the layers of each stage from 0 on, such as 0-11,12-23"


@dataclasses.dataclass(frozen=True)
class LayerRanges:
    """Layers of each stage. ``count``: number of stages; ``ends``: the layer after each stage's last one, empty where
    the layers are divided evenly."""

    count: int
    ends: tuple[int, ...] = ()

    @staticmethod
    def parse(text: str | int) -> LayerRanges:
        """Read what a user writes. Raises MoecError for other text, and for ranges with gaps."""
        if not isinstance(text, (str, int)) or isinstance(text, bool):
            raise MoecError(f"stages is {shown(text)}; {EXPECTED}")
        if str(text).isdecimal():
            if not 2 <= int(text) < 10_000:
                raise MoecError(f"stages is {text}; {EXPECTED}")
            return LayerRanges(int(text))
        ends: list[int] = []
        for part in str(text).split(","):
            match = _RANGE.fullmatch(part.strip())
            first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
            if match is None or last < first:
                raise MoecError(f"stages is {shown(text)}; {EXPECTED}")
            if first != (ends[-1] if ends else 0):
                raise MoecError(
                    f"stages is {shown(text)}: a stage begins with layer {first}; expected "
                    f"{ends[-1] if ends else 0}, for every layer is in one stage, in order"
                )
            ends.append(last + 1)
        if len(ends) < 2:
            raise MoecError(f"stages is {shown(text)}, one stage alone; {EXPECTED}")
        return LayerRanges(len(ends), tuple(ends))

    def of(self, layers: int) -> list[range]:
        """Divide ``layers`` layers. Raises MoecError where the model has fewer or others."""
        if layers < self.count:
            raise MoecError(f"the model has {layers} layers, too few for {self.count} stages; give fewer stages")
        if self.ends and self.ends[-1] != layers:
            raise MoecError(
                f"the stages end with layer {self.ends[-1] - 1}, and the model's layers are 0 to {layers - 1}; "
                "every layer is in one stage"
            )
        ends = self.ends or [layers * (stage + 1) // self.count for stage in range(self.count)]
        return [range(first, end) for first, end in zip((0, *ends), ends, strict=False)]
