"""How the weights of a product lie in memory: the element format, what scales it, and the tile order of each.

Weights of one expert are cut into tiles of ``columns`` columns (two vector registers of float32). A tile is contiguous
and all of K, so that a product reads it in one forward stream:

==================  ================================  ==================================================================
format              tile                              one number
==================  ================================  ==================================================================
float32, float16    [K, columns]                      itself
bfloat16            [K / 2, columns, 2]               itself; pairs of K as dot instructions and matrix tiles take them
int8                [K / 4, columns, 4]               (byte - zero point) * scale, quads of K
int4                [K / 4, columns / 2, 4]           as int8;  low halves are the first vector, high halves the second
mxfp4               [K / 4, columns / 2, 4]           as int4:  the 4 bits are the OCP MX code of the number
int2                [K / 8, columns / 2, 4]           as int8;  from the lowest bits on the first and second vector of
                                                      a quad of K, then those of the next
int3                [K / 16, 3, columns / 2, 4]       as int8;  the lower two bits of 16 inputs as int2, then the third
                                                      bits: from the lowest on, quad by quad, as there
fp8                 [K / 4, columns, 4]               the OCP code e4m3 of the byte, times scale
==================  ================================  ==================================================================

Integers are stored unsigned because the dot instructions of x86 and Arm multiply unsigned by signed bytes, and the
activations are the signed ones. Symmetric weights have the middle of the range as their zero point, known to the code;
others bring a table. Scales and zero points: [tile, groups of K, columns].
Scales have the type that they are stored in, but are float16 where that holds all of a format exactly.
"""

from __future__ import annotations

import dataclasses

from moec.targets.tvm.stored_format import StoredFormat

ZERO_POINTS = {"int8": 128, "int4": 8, "int3": 4, "int2": 2, "mxfp4": 12, "fp8": 0}
"""The stored number that means zero where no table says otherwise; see :data:`E2M1_HALVES` for the last one."""
E2M1_HALVES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The numbers of the 16 codes of float4 e2m1, in halves: whole numbers, which integer products compute exactly."""


@dataclasses.dataclass(frozen=True)
class TiledFormat(StoredFormat):
    """A format with the layout above."""

    @property
    def step(self) -> int:
        """Neighbouring inputs (K) that lie side by side for one column."""
        if self.is_float:
            return 2 if self.element == "bfloat16" else 1
        return 4

    @property
    def quads(self) -> int:
        """Quads of inputs that are packed together."""
        return {2: 2, 3: 4}.get(self.bits, 1)

    @property
    def storage(self) -> str:
        """Element type of the packed array."""
        return self.element if self.is_float else "uint8"
