"""FPGA boards that designs are made for: their resources, and the speed of their memories.

A user names a part by its board or its device (``zcu102``, ``xczu9eg``, ``xczu9eg-ffvb1156-2-e``). Figures are those
of the whole device. The static region of an Alveo platform (UG1120) takes part of the share that designs leave free
(see :class:`moec.targets.hls.moe.exploration.Constraints`). Block RAM is counted in units of 18 Kbit, as in HLS
reports; data sheets count 36 Kbit.
"""

from __future__ import annotations

import dataclasses

from moec.common.errors import MoecError


@dataclasses.dataclass(frozen=True)
class ExternalMemory:
    """The memory that holds weights, tokens and results. Masters of a design can be connected to ``ports`` of them,
    which the linker calls ``port_name``, numbered from 0. ``port_megahertz``: None where ports run at the design's
    clock."""

    kind: str
    gigabytes_per_second: float
    ports: int
    port_name: str
    port_bytes: int
    port_megahertz: float | None
    source: str

    def port_bytes_per_second(self, clock_megahertz: float) -> float:
        """The peak bandwidth of one port."""
        return self.port_bytes * (self.port_megahertz or clock_megahertz) * 1e6


@dataclasses.dataclass(frozen=True)
class FpgaPart:
    """An FPGA on a board. ``device``: its full name, as HLS tools take it. ``source``: the document of the figures."""

    board: str
    device: str
    dsp: int
    bram18: int
    uram: int
    lut: int
    flip_flops: int
    clock_megahertz: float
    memory: ExternalMemory
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        return self.board, self.device, self.device.split("-")[0]


def _processing_system(board_source: str) -> ExternalMemory:
    return ExternalMemory(
        kind="DDR4 of the processing system, 64 bits at 2400 MT/s",
        gigabytes_per_second=19.2,
        ports=4,
        port_name="HP{}",
        port_bytes=16,
        port_megahertz=None,
        source=f"{board_source}; ports S_AXI_HP0 to HP3 have at most 128 bits: PG201, AXI4 I/O Compliant Interfaces",
    )


def _high_bandwidth_memory(gigabytes_per_second: float, source: str) -> ExternalMemory:
    return ExternalMemory(
        kind="HBM2, 32 pseudo channels",
        gigabytes_per_second=gigabytes_per_second,
        ports=32,
        port_name="HBM[{}]",
        port_bytes=32,
        port_megahertz=450,
        source=f"{source}; 256 bits at 450 MHz per channel: PG276, and UG1393, HBM Configuration and Use (14.4 GB/s)",
    )


_LARGE_CARD = {"dsp": 9024, "bram18": 4032, "uram": 960, "lut": 1303680, "flip_flops": 2607360}

PARTS = (
    FpgaPart(
        board="kv260",
        device="xck26-sfvc784-2LV-c",
        dsp=1248,
        bram18=288,
        uram=64,
        lut=117120,
        flip_flops=234240,
        clock_megahertz=300,
        memory=_processing_system("DS987, Kria K26 SOM: 4 GB"),
        source="DS987, Kria K26 SOM Data Sheet, programmable logic (144 block RAMs of 36 Kbit)",
    ),
    FpgaPart(
        board="zcu104",
        device="xczu7ev-ffvc1156-2-e",
        dsp=1728,
        bram18=624,
        uram=96,
        lut=230400,
        flip_flops=460800,
        clock_megahertz=300,
        memory=_processing_system("UG1267, ZCU104 Board: 2 GB; the socket of the logic's own memory is empty"),
        source="DS891, Zynq UltraScale+ MPSoC Overview, EV devices, ZU7EV (312 block RAMs of 36 Kbit)",
    ),
    FpgaPart(
        board="zcu102",
        device="xczu9eg-ffvb1156-2-e",
        dsp=2520,
        bram18=1824,
        uram=0,
        lut=274080,
        flip_flops=548160,
        clock_megahertz=300,
        memory=_processing_system("UG1182, ZCU102 Board: 4 GB; 16 bits more belong to the logic and are not used"),
        source="DS891, Zynq UltraScale+ MPSoC Overview, EG devices, ZU9EG (912 block RAMs of 36 Kbit)",
    ),
    FpgaPart(
        board="u50",
        device="xcu50-fsvh2104-2-e",
        dsp=5952,
        bram18=2688,
        uram=640,
        lut=870720,
        flip_flops=1743360,
        clock_megahertz=300,
        memory=_high_bandwidth_memory(316, "DS965, Alveo U50, 8 GB"),
        source="DS965, Alveo U50 Data Sheet (872 K LUTs, 1344 block RAMs of 36 Kbit)",
    ),
    FpgaPart(
        board="u55c",
        device="xcu55c-fsvh2892-2L-e",
        clock_megahertz=300,
        memory=_high_bandwidth_memory(460, "DS978, Alveo U55C, 16 GB"),
        source="DS978, Alveo U55C Data Sheet (1304 K LUTs, 2016 block RAMs of 36 Kbit)",
        **_LARGE_CARD,
    ),
    FpgaPart(
        board="u280",
        device="xcu280-fsvh2892-2L-e",
        clock_megahertz=300,
        memory=_high_bandwidth_memory(460, "DS963, Alveo U280, 8 GB; its 32 GB of DDR4 (38 GB/s) are not used"),
        source="DS963, Alveo U280 Data Sheet (1304 K LUTs, 2016 block RAMs of 36 Kbit)",
        **_LARGE_CARD,
    ),
)
"""All known parts, from small to large."""


def find_part(name: str) -> FpgaPart:
    """The part with this name of a board or device. Raises MoecError, listing all, for an unknown name."""
    for part in PARTS:
        if name.lower() in (alias.lower() for alias in part.names):
            return part
    listed = ", ".join(f"{part.board} ({part.device})" for part in PARTS)
    raise MoecError(f"unknown FPGA part {name!r}; expected a board or its device: {listed}")
