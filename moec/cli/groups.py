"""Groups of options that several commands share, or that belong together: a command takes each as one object.

A group is a dataclass whose fields are options. :func:`with_groups` puts them into the command's signature for typer.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moec.cli.options import (
    Architecture,
    Arithmetic,
    Emulate,
    Experts,
    KeepCounts,
    Linears,
    Nodes,
    PageKind,
    PagesOption,
    Plan,
    PreferResident,
    Profile,
    Ranks,
    Replicas,
    Resident,
    Stages,
    Threads,
)

if TYPE_CHECKING:
    from moec.tools.data import TextOptions


@dataclasses.dataclass(frozen=True)
class RunningOptions:
    """Options of the threads and the memory that an artifact runs with."""

    threads: Threads = None
    pages: PagesOption = PageKind.AUTO
    resident: Resident = None
    prefer_resident: PreferResident = 0.0

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of :func:`moec.load`."""
        return {**vars(self), "pages": self.pages.value}


@dataclasses.dataclass(frozen=True)
class LoadingOptions(RunningOptions):
    """Options of loading an artifact."""

    keep_counts: KeepCounts = None
    emulate: Emulate = False
    architecture: Architecture = None


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options of selecting tokens: those of :class:`moec.runtime.sampling.Sampling`."""

    temperature: Annotated[
        float, typer.Option(help="Draw tokens with this temperature; 0 always takes the most likely one.")
    ] = 0.0
    top_k: Annotated[int, typer.Option(help="Draw from this many most likely tokens; 0 draws from all.")] = 0
    top_p: Annotated[float, typer.Option(help="Draw from the most likely tokens that add up to this probability.")] = (
        1.0
    )
    min_p: Annotated[float, typer.Option(help="Draw from tokens at least this share as likely as the likeliest.")] = 0.0
    repetition_penalty: Annotated[float, typer.Option(help="Make earlier tokens less likely; 1 has no effect.")] = 1.0
    seed: Annotated[int, typer.Option(help="Seed the random draws. The same seed gives the same text.")] = 0


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """Options of dividing texts into batches."""

    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenize texts by this tokenizer.json. Default: the model's own.")
    ] = None
    length: Annotated[int, typer.Option(min=2, help="Cut texts into rows of this many tokens.")] = 256
    batch: Annotated[int, typer.Option(min=1, help="Run this many rows of text together.")] = 8
    rows: Annotated[int | None, typer.Option(min=1, help="Use only this many rows of each text.")] = None

    def options(self) -> TextOptions:
        from moec.tools.data import TextOptions

        return TextOptions(self.tokenizer, self.length, self.batch, self.rows)


@dataclasses.dataclass(frozen=True)
class FormatOptions:
    """Formats that a model is rounded to: arguments of :func:`moec.compile`."""

    experts: Experts = None
    linears: Linears = None
    arithmetic: Arithmetic = None


@dataclasses.dataclass(frozen=True)
class PlacingOptions:
    """Places of experts and layers: arguments of :func:`moec.compile`."""

    resident: Resident = None
    ranks: Ranks = None
    nodes: Nodes = 1
    replicas: Replicas = 0
    plan: Plan = None
    stages: Stages = None
    profile: Profile = None


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is annotated with a group by the options of the group."""
    own = parameters_of(command)
    groups = {name: own[name].annotation for name in own if dataclasses.is_dataclass(own[name].annotation)}

    def run(**arguments: Any) -> None:
        for name, group in groups.items():
            arguments[name] = group(**{option: arguments.pop(option) for option in parameters_of(group)})
        command(**arguments)

    shown = [
        parameter
        for name in own
        for parameter in (parameters_of(groups[name]).values() if name in groups else [own[name]])
    ]
    return like(command, run, shown)


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function, eval_str=True).parameters)


def like(
    command: Callable[..., Any], run: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give ``run`` the name and help of ``command``, and these parameters for typer to read."""
    wrapped = functools.wraps(command)(run)
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    wrapped.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped
