"""Targets by name. A name is a kind, and after a colon what that kind lets one choose: ``cpu``, ``cpu:avx2``,
``cuda:sm_90a``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moec.errors import MoecError, UnsupportedError
from moec.targets.base import Target

if TYPE_CHECKING:
    from moec.targets.hls.options import HlsOptions


def _cpu(name: str) -> Target:
    from moec.targets.cpu.target import CpuTarget

    return CpuTarget.create(name)


def _cuda(name: str) -> Target:
    from moec.targets.cuda.target import CudaTarget

    return CudaTarget.create(name)


def _hls(name: str, options: HlsOptions | None = None) -> Target:
    from moec.targets.hls.target import HlsTarget

    return HlsTarget.create(name, options)


TARGETS: dict[str, Callable[[str], Target]] = {"cpu": _cpu, "cuda": _cuda, "hls": _hls}
"""Makers of targets by kind; each is given the whole name."""


def get(name: str) -> Target:
    """The target of that name. Raises MoecError listing the known kinds, UnsupportedError for an unknown variant."""
    kind = name.partition(":")[0]
    if kind not in TARGETS:
        variants = "with a variant such as cpu:avx2, cuda:sm_80+sm_90a or hls:zcu102"
        raise MoecError(f"target '{name}' is not known; use one of {', '.join(TARGETS)}, {variants}")
    return TARGETS[kind](name)


def get_all(name: str, hls: HlsOptions | None = None) -> list[Target]:
    """The targets of a name that may list several architectures of one kind, ``cuda:sm_80+sm_90a``: oldest first.
    ``hls``: options of an FPGA's project. Raises what :func:`get` does, and UnsupportedError for one that is listed
    twice, for a kind that has no list, and for options that a kind does not have."""
    kind, _, variants = name.partition(":")
    if kind == "hls":
        return [_hls(name, hls)]
    if hls is not None:
        raise UnsupportedError(f"target '{name}': calibration data and limits of hardware are for hls:PART")
    listed = variants.split("+")
    if len(listed) == 1:
        return [get(name)]
    if "" in listed:
        raise UnsupportedError(
            f"target '{name}': an architecture is missing beside '+'; expected e.g. {kind}:sm_80+sm_90a"
        )
    if kind != "cuda":
        raise UnsupportedError(
            f"target '{name}': only cuda takes several architectures; choose one, {kind}:{listed[0]}"
        )
    found = [get(f"{kind}:{variant}") for variant in sorted(listed)]
    twice = next((variant for variant in listed if listed.count(variant) > 1), None)
    if twice is not None:
        raise UnsupportedError(f"target '{name}': {twice} is listed twice; once is enough")
    return found
