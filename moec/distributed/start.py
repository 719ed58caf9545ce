"""Loading of an artifact for a command: on the ranks that torchrun started, or in this process alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from moec import targets
from moec.artifacts.loading import device_of, load
from moec.common.cores import available_cores
from moec.common.errors import MoecError
from moec.common.version import VERSION
from moec.distributed.device_exchange import DeviceExchange
from moec.distributed.exchange import RowExchange
from moec.distributed.group import RankGroup, joined
from moec.distributed.model import RankedModel
from moec.distributed.pipeline import PipelinedModel
from moec.runtime.artifact import Artifact, open_artifact
from moec.runtime.device import GLOO, Device
from moec.runtime.load_options import LoadOptions
from moec.runtime.manifest import digest_of
from moec.runtime.model import CompiledModel


def is_started_on_ranks() -> bool:
    """Whether torchrun started this process as one of several ranks, or as the only one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextlib.contextmanager
def loaded(path: str | os.PathLike[str], **options: Any) -> Iterator[CompiledModel]:
    """Context of a loaded artifact. ``options``: those of :func:`moec.load`; ranks of one machine share its cores.
    Ranks other than the first print nothing in the block, except the error that ends it. Raises MoecError as that
    function, and as :func:`loaded_on_ranks`."""
    if not is_started_on_ranks():
        model = load(path, **options)
        try:
            yield model
        finally:
            model.save_counts()
        return
    if options.get("cuda_graphs"):
        raise MoecError("cuda_graphs repeats runs of fixed sizes; ranks exchange other numbers of rows in each run")
    for name in ("prefer_resident", "keep_counts"):
        if options.get(name):
            raise MoecError(f"{name} is about the experts of one process; leave it out on several ranks")
    threads = options.pop("threads", None) or max(1, len(available_cores()) // _ranks_here())
    with loaded_on_ranks(path, LoadOptions(threads=threads, **options)) as model, contextlib.ExitStack() as silenced:
        if is_silent_rank():
            nowhere = silenced.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silenced.enter_context(contextlib.redirect_stdout(nowhere))
            silenced.enter_context(contextlib.redirect_stderr(nowhere))
        yield model


@contextlib.contextmanager
def loaded_on_ranks(path: str | os.PathLike[str], options: LoadOptions) -> Iterator[CompiledModel]:
    """Context of an artifact on the ranks that torchrun started: of one with stages each rank runs one, of one with
    placed experts each holds some, and of one with both each holds some of one stage. Raises MoecError for any
    other artifact, and as :func:`moec.distributed.group.joined`."""
    artifact = open_artifact(path, check_weights=options.check_weights)
    placement, stages = artifact.manifest.placement, len(artifact.manifest.pipeline)
    if placement is None and not stages:
        raise MoecError(f"{path}: is for one process; compile it with --ranks (experts) or --stages (layers)")
    facts = {"artifact": digest_of(artifact.manifest), "version": VERSION}
    ranks = 1 if placement is None else placement.ranks
    device = _device_here(artifact, options)
    with joined(ranks * max(1, stages), facts, backend=GLOO if device is None else device.backend) as world:
        if placement is None:
            yield PipelinedModel(artifact, options, world)
            return
        row, column = (world, None) if not stages else _rows_and_columns(world, ranks, stages)
        exchange = RowExchange(row, placement) if device is None else DeviceExchange(row, placement)
        yield RankedModel(artifact, options, exchange, column, device)


def _device_here(artifact: Artifact, options: LoadOptions) -> Device | None:
    """Select the device of this rank; None for the processor."""
    has_device = targets.program_kind_of(artifact.manifest.target).has_device
    if has_device and not options.emulate:
        os.environ["CUDA_VISIBLE_DEVICES"] = see_own_gpu()
    return device_of(artifact, options) if has_device or options.emulate else None


def see_own_gpu() -> str:
    """Find the GPU of this rank among those that its machine's processes may use: programs run on the first that they
    see, so each rank is to see one. Raises MoecError where there are fewer than ranks."""
    local, listed = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return str(local)
    gpus = [name for name in listed.split(",") if name]
    if local >= len(gpus):
        raise MoecError(f"rank {local} of this machine has no GPU: CUDA_VISIBLE_DEVICES lists {len(gpus)}")
    return gpus[local]


def _rows_and_columns(world: RankGroup, ranks: int, stages: int) -> tuple[RankGroup, RankGroup]:
    """Divide all ranks into those of a stage, which are consecutive, and those with the same number in their stages, in
    the order of stages."""
    rows = [range(stage * ranks, (stage + 1) * ranks) for stage in range(stages)]
    columns = [range(number, ranks * stages, ranks) for number in range(ranks)]
    return world.part(rows), world.part(columns)


def is_silent_rank() -> bool:
    """Whether another process, rank 0, prints and writes the results."""
    return is_started_on_ranks() and os.environ["RANK"] != "0"


def _ranks_here() -> int:
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdecimal() else 1
