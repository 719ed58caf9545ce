"""Models on the ranks of a process group that the caller started, such as one layer of a model in eager PyTorch."""

from __future__ import annotations

import dataclasses
from typing import Any

from moec.common.errors import MoecError, UnsupportedError
from moec.distributed.exchange import RowExchange
from moec.distributed.group import RankGroup
from moec.distributed.values import gathered_data
from moec.runtime.manifest import digest_of
from moec.runtime.model import CompiledModel


def ranks_of(processes: Any) -> int:
    """Count the ranks of a process group of torch.distributed. Raises MoecError for one that cannot exchange rows: this
    process is not in it, or it carries tensors of GPUs alone."""
    from torch import distributed

    if not isinstance(processes, distributed.ProcessGroup):
        raise MoecError(
            f"group is a {type(processes).__name__}; expected a process group of torch.distributed, such as "
            'torch.distributed.group.WORLD after init_process_group("gloo")'
        )
    if distributed.get_rank(processes) < 0:
        raise MoecError("group: this process is not in it; call moec.torch.experts on its members only")
    if distributed.get_backend(processes) == "nccl":
        raise UnsupportedError(
            "group: its backend is nccl, and moec computes in the memory of processors; expected "
            'torch.distributed.new_group(backend="gloo")'
        )
    return distributed.get_world_size(processes)


def on_ranks(model: CompiledModel, processes: Any) -> CompiledModel:
    """Load a placed model again for this rank of a process group, with its own experts. All ranks call this, and run
    the result equally often, each on inputs of its own. Raises MoecError where ranks have different models."""
    from torch import distributed

    placement = model.artifact.manifest.placement
    assert placement is not None, "compiled without ranks"
    group = RankGroup(distributed.get_rank(processes), distributed.get_world_size(processes), processes=processes)
    digests = gathered_data(group, digest_of(model.artifact.manifest), "comparison of models")
    if len(set(digests)) > 1:
        other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
        raise MoecError(f"rank {other} has other experts than rank 0; load the same model on all ranks")
    ranked = CompiledModel(model.artifact, dataclasses.replace(model._options, rank=group.rank))
    ranked._executor.exchange_rows(RowExchange(group, placement))
    return ranked
