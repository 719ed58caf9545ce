"""Targets by name. A name is a kind, optionally followed by a colon and a variant of that kind: ``cpu``, ``cpu:avx2``,
``cuda:sm_90a``. Code outside this package never names a kind: it asks :func:`kind_of` for whatever differs between
kinds."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from moec.common.arguments import check_kind, shown
from moec.common.errors import MoecError, UnsupportedError
from moec.targets.kind import Form, Kind, Options, ProgramKind

if TYPE_CHECKING:
    from moec.targets.base import Target

KINDS = {
    "cpu": "moec.targets.cpu.kind:CpuKind",
    "cuda": "moec.targets.cuda.kind:CudaKind",
    "hls": "moec.targets.hls.kind:HlsKind",
}
"""The classes of all kinds by name."""
DEFAULT = "cpu"
"""The target that a model is compiled for when none is named."""


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """All kinds."""
    places = (place.split(":") for place in KINDS.values())
    return tuple(getattr(importlib.import_module(module), name)() for module, name in places)


@functools.cache
def forms() -> dict[str, Form]:
    """All forms that sources of kernels are stored in, by name."""
    every = (Form("tir", ".tir", "#"), *(form for kind in kinds() for form in kind.forms))
    return {form.name: form for form in every}


def kind_of(name: str) -> Kind:
    """The kind of the targets that ``name`` lists. Raises MoecError, listing the existing kinds, for an unknown one."""
    match = next((kind for kind in kinds() if kind.name == name.partition(":")[0]), None)
    if match is None:
        *some, last = (kind.examples[-1] for kind in kinds())
        variants = f"with a variant such as {', '.join(some)} or {last}"
        raise MoecError(f"target '{name}' is not known; use one of {', '.join(KINDS)}, {variants}")
    return match


def program_kind_of(name: str) -> ProgramKind:
    """The kind of a target whose models can be called. Raises MoecError for kinds that make projects instead, and for
    unknown ones."""
    kind = kind_of(name)
    if not isinstance(kind, ProgramKind):
        raise MoecError(
            f"target '{name}' makes projects, not a model to call; choose a target such as {DEFAULT}, or simulate the "
            "projects: moec simulate ART"
        )
    return kind


def check_name(name: Any) -> None:
    """Raise MoecError unless ``name`` is a string."""
    check_kind("target", name, str, "a string such as 'cpu' or 'cuda:sm_90a'")


def check_options(name: str, options: Options) -> None:
    """Raise UnsupportedError if the options are for another kind than the target's; also raises what :func:`kind_of`
    does."""
    if not isinstance(getattr(options, "kind", None), str):
        expected = "options of a kind of target, such as moec.targets.hls.options.HlsOptions"
        raise MoecError(f"the options of target '{name}' are {shown(options)}; expected {expected}")
    if options.kind != kind_of(name).name:
        raise UnsupportedError(f"target '{name}': {options.subject}")


def default(*, on_device: bool, architecture: str | None = None) -> str:
    """The default target: the CPU's; of the first kind with a device if one is asked for; of the kind that has an
    ``architecture``, if one is named."""
    if not on_device and architecture is None:
        return DEFAULT
    on_devices = [kind for kind in kinds() if isinstance(kind, ProgramKind) and kind.has_device]
    if architecture is None:
        return on_devices[0].name
    names = [f"{kind.name}:{architecture}" for kind in on_devices]
    return next(filter(_exists, names), names[0])


def _exists(name: str) -> bool:
    try:
        get(name)
    except UnsupportedError:
        return False
    return True


def get(name: str, options: Options | None = None) -> Target:
    """The target of that name. Raises what :func:`check_options` does; UnsupportedError for an unknown variant."""
    if options is not None:
        check_options(name, options)
    return kind_of(name).target(name, options)


def get_all(name: str, options: Options | None = None) -> list[Target]:
    """The targets of a name that may list several architectures of one kind (``cuda:sm_80+sm_90a``), oldest first.

    Raises what :func:`get` does, and UnsupportedError for an architecture that is listed twice or left empty, and for a
    list of a kind that takes only one.
    """
    kind, listed = kind_of(name), name.partition(":")[2].split("+")
    if len(listed) == 1:
        return [get(name, options)]
    if not kind.takes_several:
        several = " and ".join(other.name for other in kinds() if other.takes_several)
        raise UnsupportedError(
            f"target '{name}': only {several} takes several architectures; choose one, {kind.name}:{listed[0]}"
        )
    if "" in listed:
        raise UnsupportedError(
            f"target '{name}': an architecture is missing next to '+'; expected e.g. {kind.examples[-1]}"
        )
    listed_targets = [get(f"{kind.name}:{variant}", options) for variant in kind.oldest_first(listed)]
    twice = next((variant for variant in listed if listed.count(variant) > 1), None)
    if twice is not None:
        raise UnsupportedError(f"target '{name}': {twice} is listed twice; once is enough")
    return listed_targets
