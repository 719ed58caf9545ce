"""Loading of artifacts: options and a device become a model."""

from __future__ import annotations

import os

from moec import targets
from moec.common.arguments import check_path, known_options, options_of
from moec.common.errors import MoecError, reporting
from moec.runtime.artifact import Artifact, open_artifact
from moec.runtime.device import Device
from moec.runtime.load_options import DEFAULTS, LoadOptions
from moec.runtime.model import CompiledModel
from moec.runtime.pages import Pages


@reporting("loading")
@known_options
def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    check_weights: bool = True,
    pages: Pages = "auto",
    emulate: bool = False,
    architecture: str | None = None,
    cuda_graphs: bool = False,
    resident: int | str | None = None,
    prefer_resident: float = 0.0,
    keep_counts: str | os.PathLike[str] | None = None,
) -> CompiledModel:
    """Load an artifact.

    Raises ArtifactError when the artifact is truncated, altered, of another format version or for another machine;
    MoecError for a wrong option, and for huge pages, a GPU or a compiler that is not available; UnsupportedError for
    graphs of a model that has sizes which depend on data, or that does not run on a GPU.

    path
        A folder, or a zip of one, that :func:`moec.compile` or :meth:`moec.CompiledModel.save` wrote.
    threads
        Number of threads. None: as compiled, by default every available core.
    check_weights
        Whether to compare the checksum of ``weights.bin``, which takes about a second per gigabyte.
    pages
        ``mapped`` maps weights from their file; ``huge`` copies them into huge pages, which are read faster where the
        system does not map files so; ``streamed`` keeps at most ``resident`` bytes of weights in memory, and reads
        experts when they are selected. ``auto`` decides by the size of weights, the free memory and the system, and
        streams a model that has a number of resident bytes and does not fit into them.
    emulate
        Whether to run code for a GPU on the processor, slowly; needs g++.
    architecture
        Program to run, where there are several for GPUs (``sm_80``). None: the best for the GPU, or the newest where it
        is emulated.
    cuda_graphs
        Whether to launch all kernels of a run at once, from the second run with the same input sizes on. This is faster
        for few tokens; inputs and outputs are copied, and each set of sizes keeps its memory. Steps of a session that
        keeps states in place share a graph while its number of pages stays the same.
    resident
        The most memory that weights take, in bytes or as ``8GiB``. None: as compiled.
    prefer_resident
        Replace a selected expert that is not in memory, except a token's first, by one that is, if that loses at most
        this share of its weight (0.1: a tenth); results then depend on earlier runs.
    keep_counts
        File with the number of times that each expert was chosen. Those chosen most are read first;
        :meth:`moec.CompiledModel.save_counts` adds to it. It need not exist.
    """
    check_path("path", path)
    options = options_of(LoadOptions, locals())
    return ready(open_artifact(path, check_weights=check_weights), options)


@reporting("loading")
def ready(artifact: Artifact, options: LoadOptions = DEFAULTS) -> CompiledModel:
    """Load an open artifact, as :func:`load` does."""
    return CompiledModel(artifact, options, device_of(artifact, options))


def device_of(artifact: Artifact, options: LoadOptions = DEFAULTS) -> Device | None:
    """Select the device; None stands for the processor. Raises MoecError for a device that is not there, for a target
    without emulator, and for an architecture that the artifact has no program for."""
    program, target = artifact.program(options.architecture), artifact.manifest.target
    kind = targets.program_kind_of(target)
    if not options.emulate:
        return kind.device(artifact, options.architecture)
    device = kind.emulated_device(program.architecture)
    if device is None:
        raise MoecError(f"{artifact.where}: is compiled for {target}, which needs no emulation")
    return device
