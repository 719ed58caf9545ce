"""Sweeps: new variants are compiled, judged against the first one and timed in turns with it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

from moec.common.errors import MoecError, reporting
from moec.common.jobs import JobExecutor, job_runner
from moec.common.progress import Progress, silent
from moec.common.replacing import check_replaceable
from moec.common.scratch import ScratchFolder, locked
from moec.common.seals import foreign_file
from moec.tools.data import TextOptions, with_tokenizer_of
from moec.tools.metrics import METRICS
from moec.tools.sweeping.file import NAME, Variant, foreign
from moec.tools.sweeping.front import on_front
from moec.tools.sweeping.keys import Keys, written_out
from moec.tools.sweeping.runs import VariantRun, VariantWork

PAGE = "sweep.html"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Variants in the requested order; ``reused``: number of those that had been run before; ``failures``: one line for
    each pipeline that failed."""

    variants: list[Variant]
    reused: int = 0
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Metric of the fronts: the first one."""
        return next(iter(self.variants[0].qualities))

    def costs(self) -> dict[str, list[float | None]]:
        """Costs of each variant, by the name of the cost: bytes of weights, bits of a weight of its experts, and for
        each case its time as a share of the first variant's, which was measured in turns with it."""
        costs: dict[str, list[float | None]] = {
            "weights, bytes": [variant.weight_bytes for variant in self.variants],
            "bits of experts": [variant.expert_bits for variant in self.variants],
        }
        for case in self.variants[0].times:
            costs[f"time, {case}"] = [variant.times[case].share for variant in self.variants]
        return costs

    def fronts(self) -> dict[str, list[bool]]:
        """Find, for each cost, the variants that no other beats in both that cost and quality."""
        sign = -1 if METRICS[self.metric].more_is_better else 1
        losses = [sign * variant.qualities[self.metric].value for variant in self.variants]
        return {name: on_front(list(zip(costs, losses, strict=True))) for name, costs in self.costs().items()}


@reporting("sweeping")
def sweep(
    model: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    pipelines: Sequence[str],
    *,
    metrics: Sequence[str] = (),
    labels: str | os.PathLike[str] | None = None,
    output: str | None = None,
    text: TextOptions | None = None,
    threads: int | None = None,
    keep: bool = False,
    workers: int = 0,
    executor: JobExecutor | None = None,
    progress: Progress = silent,
) -> Sweep:
    """Compile a model by every pipeline, judge and time the results, and write ``sweep.json`` into ``folder``, which is
    created if necessary.

    ``pipelines``: the others are compared with the first; see :func:`moec.tools.sweeping.variants`. ``metrics``,
    ``labels``, ``output`` and ``text`` as for :func:`moec.tools.evaluate.evaluate`. ``keep``: leave artifacts in the
    folder. Results in ``sweep.json`` for the same model, data, files and pipelines, by this version of moec, are
    reused, and each new result is written at once. A pipeline that fails is noted, unless it is the first.

    ``workers``, ``executor``: where variants are compiled and judged, each in one job: in so many processes of this
    machine, or on an executor of PEP 3148 whose machines see the same files (:mod:`moec.common.jobs`). Variants are
    timed here, one after another, when all are judged. Until then their artifacts are in the folder, where an
    interrupted sweep goes on.

    Raises MoecError for a model, data or pipelines that cannot be used, for a folder with files that are not moec's,
    and for one in which another sweep is at work.
    """
    if not pipelines:
        raise MoecError("no pipeline to try; expected at least one, such as O2")
    place = _prepared(pathlib.Path(folder), model)
    with _alone_in(place), job_runner(workers, executor) as runner, contextlib.ExitStack() as stack:
        progress("reading")
        text = with_tokenizer_of(text, model, data)
        first = written_out(pipelines[0])
        settings = {"metrics": list(metrics), "output": output, "threads": threads, "first": first}
        keys = list(map(Keys(model, data, labels, text, settings).of, pipelines))
        in_place = keep or not runner.is_here
        store = place if in_place else pathlib.Path(stack.enter_context(ScratchFolder()))
        shared = VariantWork(
            model, tuple(data), tuple(metrics), labels, output, text, threads, runner.threads_each(threads)
        )
        variants = VariantRun(place, store, keep, shared, runner, list(zip(pipelines, keys, strict=True)), progress)
        variants.run()
        return Sweep(variants.results(), variants.reused, variants.failures)


def _prepared(folder: pathlib.Path, model: str | os.PathLike[str]) -> pathlib.Path:
    if not pathlib.Path(model).exists():
        raise MoecError(f"{model}: no such file; expected an ONNX model")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MoecError(f"{folder}: cannot be made: {error.strerror or error}; choose another folder") from error
    check_replaceable(folder / NAME, foreign)
    check_replaceable(folder / PAGE, foreign_file)
    return folder


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Context in which no other sweep works in the folder: it would write ``sweep.json`` without these results."""
    try:
        lock = locked(folder, wait=False)
    except BlockingIOError as error:
        raise MoecError(f"{folder}: another sweep is at work there; wait for it, or choose another folder") from error
    except OSError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        os.close(lock)
