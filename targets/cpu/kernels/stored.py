"""How the weights of a product lie in memory: the element format, what scales it, and the tile order of each.

Weights of one expert are cut into tiles of ``columns`` columns (two vector registers of float32). A tile is contiguous
and all of K, so that a product reads it in one forward stream:

==================  ================================  ==================================================================
element             tile                              one number
==================  ================================  ==================================================================
float32, float16    [K, columns]                      itself
bfloat16            [K / 2, columns, 2]               itself; pairs of K as dot instructions and matrix tiles take them
uint8               [K / 4, columns, 4]               (byte - zero point) * scale, quads of K
uint4               [K / 4, columns / 2, 4]           as uint8; low halves are the first vector, high halves the second
float4_e2m1         [K / 4, columns / 2, 4]           as uint4: the 4 bits are the OCP MX code of the number
==================  ================================  ==================================================================

Integers are stored unsigned because the dot instructions of x86 and Arm multiply unsigned by signed bytes, and the
activations are the signed ones. Symmetric weights have the middle of the range as their zero point, known to the code;
others bring a table. Scales and zero points: [tile, groups of K, columns].
"""

from __future__ import annotations

import dataclasses

FLOAT_ELEMENTS = ("float32", "float16", "bfloat16")
ZERO_POINTS = {"uint8": 128, "uint4": 8, "float4_e2m1": 12}
"""The stored number that means zero where no table says otherwise; see :data:`E2M1_HALVES` for the last one."""
E2M1_HALVES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The numbers of the 16 codes of float4 e2m1, in halves: whole numbers, which integer products compute exactly."""


@dataclasses.dataclass(frozen=True)
class StoredFormat:
    """``element`` as above. ``group``: consecutive inputs (K) that share a scale, 0 for all of them. ``scale``: element
    type of the scales, float32, float16, bfloat16 or float8_e8m0fnu."""

    element: str
    group: int = 0
    scale: str = "float32"
    zero_points: bool = False

    @property
    def is_float(self) -> bool:
        return self.element in FLOAT_ELEMENTS

    @property
    def step(self) -> int:
        """Neighbouring inputs (K) that lie side by side for one column."""
        if self.is_float:
            return 2 if self.element == "bfloat16" else 1
        return 4

    @property
    def bits(self) -> int:
        """Bits of one weight, without scales."""
        return {"float32": 32, "float16": 16, "bfloat16": 16, "uint8": 8}.get(self.element, 4)

    @property
    def storage(self) -> str:
        """Element type of the packed array."""
        return self.element if self.is_float else "uint8"

    @property
    def name(self) -> str:
        """As shown to people, e.g. ``int4 (groups of 32, float16 scales)``."""
        if self.is_float:
            return self.element
        short = {"uint8": "int8", "uint4": "int4", "float4_e2m1": "mxfp4"}[self.element]
        groups = f"groups of {self.group}" if self.group else "per column"
        return f"{short} ({groups}, {self.scale} scales{', zero points' if self.zero_points else ''})"

    def groups(self, inner: int) -> int:
        """Scales per column."""
        return -(-inner // self.group) if self.group else 1

    def bits_per_weight(self, inner: int) -> float:
        """Scales and zero points included."""
        if self.is_float:
            return float(self.bits)
        scale_bits = {"float32": 32, "float16": 16, "bfloat16": 16, "float8_e8m0fnu": 8}[self.scale]
        return self.bits + (scale_bits + 8 * self.zero_points) * self.groups(inner) / inner
