"""Advice in words for one run of a model, each with the figures that it follows from.

All gains are predicted: shares of the time of the run's kernels that would be saved where each kernel keeps its share
of the roofline (Williams, Waterman, Patterson, "Roofline", 2009). A rule without figures that ask for it says nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moec.common.roofline import FLOAT32
from moec.common.work import Work
from moec.exploring.kernel_runs import KernelRun, Run
from moec.ir.weights.format import WeightFormat

FORMATS = ("int8", "int4/32")
"""Formats that weights could have."""
ARITHMETICS = ("int8", "tf32")
"""Arithmetic that products could use; each is the name of a format of weights that asks for it, too."""
_LEAST_GAIN = 0.1
_MEMORY_AT_LEAST, _ROOF_BELOW, _OCCUPANCY_BELOW = 0.4, 0.5, 0.5
_MOST_KERNELS = 3
_ROUNDED = 0.01
"""Difference of two shares that may be an error of rounding."""
_SHORT, _SHORT_SHARE = 5e-6, 0.25
"""Seconds of a call that is mostly its start, and the share of a run that such calls take at least."""
_LAUNCH = 3e-6
"""Seconds that a launch takes on a GPU, as :mod:`moec.targets.cuda.estimates.crossovers` has them."""
_ROUNDING = "Rounding makes results inexact; moec evaluate measures by how much."


@dataclasses.dataclass(frozen=True)
class Advice:
    """One piece of advice. ``figures``: the numbers in ``text``, by name; ``gain``: predicted share of the time saved,
    None where it is unknown; ``exact``: whether results stay as they are; ``options``: of ``moec compile``."""

    text: str
    kernels: tuple[str, ...]
    figures: Mapping[str, float]
    gain: float | None
    exact: bool = True
    options: str = ""


def advice_for(run: Run) -> list[Advice]:
    """Collect the advice for a run, that with the largest gain first."""
    if not run.seconds:
        return []
    rules = (_short_launches,) if _launches_decide(run) else _RULES
    advices = [advice for rule in rules for advice in rule(run)]
    return sorted(advices, key=lambda advice: -(advice.gain or 0.0))


def is_generic(kernel: Mapping[str, Any]) -> bool:
    """Whether a kernel is a loop nest that was made for operators without a kernel of their own."""
    return any(candidate["chosen"] and candidate["kernel"] == "generic" for candidate in kernel["candidates"])


def share_of_roof(run: Run, row: KernelRun) -> float | None:
    """Share of the roofline that a measured kernel reaches; None for a predicted one."""
    return run.least(row.work) / row.seconds if run.whole is not None and row.seconds else None


def _narrower_weights(run: Run) -> Iterator[Advice]:
    """Weights in fewer bits, where memory limits the run."""
    moved = sum(row.work.bytes_moved for row in run.kernels)
    delivered = moved / (run.seconds * run.machine.roofline.bandwidth)
    if not _MEMORY_AT_LEAST <= delivered <= 1 + _ROUNDED:  # more comes from caches
        return
    saved = {name: {row.name: _saved_bytes(row, WeightFormat.parse(name)) for row in run.kernels} for name in FORMATS}
    shares = {name: sum(rows.values()) / moved for name, rows in saved.items()}
    useful = sorted((name for name, share in shares.items() if share >= _LEAST_GAIN), key=lambda name: -shares[name])
    if not useful:
        return
    best = useful[0]
    gain = _gain(run, lambda row: _with_bytes(row.work, row.work.bytes_moved - round(saved[best][row.name])))
    if gain < _LEAST_GAIN:
        return
    rows = [row for row in run.kernels if saved[best][row.name]]
    reads = sum(row.reads.bytes for row in rows if row.reads is not None) / moved
    limited = "is limited by memory" if run.whole is None else f"reads {delivered:.0%} of what memory can deliver"
    others = "".join(f" ({name}: {shares[name]:.0%})" for name in useful[1:])
    text = (
        f"{run.title}: the run {limited}, and {reads:.0%} of its bytes are weights of {_owners(rows)}. "
        f"{best} would read {shares[best]:.0%} fewer bytes{others}. {_ROUNDING}"
    )
    figures = {"share_of_bandwidth": delivered, "share_of_weights": reads}
    figures |= {f"fewer_bytes_{name}": shares[name] for name in useful}
    kernels = tuple(row.name for row in rows)
    yield Advice(text, kernels, figures, gain, False, _options(rows, best))


def _has_experts(row: KernelRun) -> bool:
    return row.kernel["attributes"].get("experts", 1) > 1


def _owners(rows: Sequence[KernelRun]) -> str:
    """Name what the weights of products belong to."""
    are_experts = {_has_experts(row) for row in rows}
    return " and ".join(name for flag, name in ((True, "experts"), (False, "linear layers")) if flag in are_experts)


def _options(rows: Sequence[KernelRun], form: str) -> str:
    """Write the options of ``moec compile`` that store the weights of products in a format."""
    are_experts = {_has_experts(row) for row in rows}
    return " ".join(f"--{name} {form}" for flag, name in ((True, "experts"), (False, "linears")) if flag in are_experts)


def _with_bytes(work: Work, count: int) -> Work:
    return dataclasses.replace(work, bytes_moved=count)


def _saved_bytes(row: KernelRun, form: WeightFormat) -> float:
    if row.reads is None:
        return 0.0
    saved = row.reads.bytes - row.reads.count * form.bits_per_weight(row.reads.inner) / 8
    return saved if saved > _ROUNDED * row.reads.bytes else 0.0


def _gain(run: Run, changed: Callable[[KernelRun], Work]) -> float:
    """Share of the time that is saved where kernels have other work, at the same share of the roofline."""
    saved = 0.0
    for row in run.kernels:
        least = run.least(row.work)
        saved += row.seconds * (1 - run.least(changed(row)) / least) if least else 0.0
    return saved / run.seconds


def _faster_arithmetic(run: Run) -> Iterator[Advice]:
    """Products on float32 that arithmetic limits, where the machine has a faster one."""
    roofline = run.machine.roofline
    products = [row for row in run.kernels if row.reads is not None and row.work.arithmetic == FLOAT32]
    slow = [row for row in products if _computes(run, row)]
    share = sum(row.seconds for row in slow) / run.seconds
    for arithmetic in ARITHMETICS:
        faster = roofline.peak(arithmetic) / roofline.peak(FLOAT32)
        changed = {row.name: dataclasses.replace(row.work, arithmetic=arithmetic) for row in slow}
        gain = _gain(run, lambda row, changed=changed: changed.get(row.name, row.work))
        if gain < _LEAST_GAIN:
            continue
        text = (
            f"{run.title}: products on float32 take {share:.0%} of the time and are limited by arithmetic. "
            f"{arithmetic} does {faster:.1f} times as many operations per second here. {_ROUNDING}"
        )
        figures = {"share_of_time": share, "times_as_fast": faster}
        yield Advice(text, tuple(row.name for row in slow), figures, gain, False, _options(slow, arithmetic))


def _computes(run: Run, row: KernelRun) -> bool:
    """Whether arithmetic limits a kernel, not memory."""
    return run.least(row.work) > row.work.bytes_moved / run.machine.roofline.bandwidth


def _below_roof(run: Run) -> Iterator[Advice]:
    """Kernels that were measured far below the roof, and take much of the time."""
    for row in sorted(run.kernels, key=lambda row: run.least(row.work) - row.seconds)[:_MOST_KERNELS]:
        reached, share = share_of_roof(run, row), row.seconds / run.seconds
        if _is_short(row):  # its start takes the time
            continue
        if reached is None or reached >= _ROOF_BELOW or share * (1 - reached) < _LEAST_GAIN:
            continue
        limit = "arithmetic" if _computes(run, row) else "memory"
        roof = f"{_percent(reached)} of what {limit} allows"
        text = f"{run.title}: {row.name} takes {share:.0%} of the time and reaches {roof}."
        if row.kernel["crossovers"]:
            text += " moec tune measures which of its ways of computing is faster on this machine."
        yield Advice(text, (row.name,), {"share_of_time": share, "share_of_roof": reached}, share * (1 - reached))


def _percent(share: float) -> str:
    return "less than 1%" if share < 0.01 else f"{share:.0%}"


def _is_short(row: KernelRun) -> bool:
    """Whether a call is mostly its start."""
    return row.seconds < row.calls * _SHORT


def _generic_kernels(run: Run) -> Iterator[Advice]:
    """Loop nests for operators without a kernel of their own that take much of the time."""
    rows = [row for row in run.kernels if is_generic(row.kernel) and row.seconds >= _LEAST_GAIN * run.seconds]
    for row in sorted(rows, key=lambda row: -row.seconds)[:_MOST_KERNELS]:
        share = row.seconds / run.seconds
        text = (
            f"{run.title}: {row.name} takes {share:.0%} of the time. It is a plain loop nest, because no kernel "
            "is made for its operators; Why shows the candidates."
        )
        yield Advice(text, (row.name,), {"share_of_time": share}, None)


def _short_calls(run: Run) -> Iterator[Advice]:
    """Calls so short that starting them takes much of the time."""
    short = [row for row in run.kernels if _is_short(row)]
    share, calls = sum(row.seconds for row in short) / run.seconds, sum(row.calls for row in short)
    if run.whole is None or share < _SHORT_SHARE:
        return
    text = (
        f"{run.title}: {calls} calls of {len(short)} kernels take less than {_SHORT * 1e6:.0f} µs each, and together "
        f"{share:.0%} of the time: mostly their start. More tokens or sequences in one run share these calls."
    )
    figures = {"calls": calls, "kernels": len(short), "microseconds_at_most": _SHORT * 1e6, "share_of_time": share}
    yield Advice(text, tuple(row.name for row in short), figures, None)


def _launches_decide(run: Run) -> bool:
    """Whether the launches of a predicted run take longer than the least time of its kernels."""
    return run.seconds < _launches(run) * _LAUNCH


def _launches(run: Run) -> int:
    return sum(launch["calls"] for row in run.kernels for launch in row.launches)


def _short_launches(run: Run) -> Iterator[Advice]:
    """Launches that take longer than the work in them."""
    launches = _launches(run)
    text = (
        f"{run.title}: {launches} launches need {run.seconds * 1e6:.3g} µs at least for their work, but a launch takes "
        f"about {_LAUNCH * 1e6:.0f} µs, {launches * _LAUNCH * 1e6:.3g} µs in all: launches decide the time. "
        "More tokens or sequences in one run share them."
    )
    figures = {"launches": launches, "microseconds": run.seconds * 1e6, "microseconds_of_launch": _LAUNCH * 1e6}
    figures["microseconds_of_launches"] = launches * _LAUNCH * 1e6
    yield Advice(text, (), figures, None)


def _few_warps(run: Run) -> Iterator[Advice]:
    """Launches that memory limits, and of which registers or shared memory let a multiprocessor hold few warps."""
    most = run.machine.warps
    launches = [(row, launch) for row in run.kernels for launch in row.launches if launch["waves"] > 1]
    for row, launch in launches:
        warps, limit = launch["warps_at_once"], launch["occupancy_limit"]
        share = launch["calls"] * launch["least_seconds"] / run.seconds
        is_held_back = "registers" in limit or "shared memory" in limit
        if most is None or not is_held_back or warps >= _OCCUPANCY_BELOW * most or launch["limit"] != "memory":
            continue
        if share < _LEAST_GAIN:
            continue
        text = (
            f"{run.title}: {row.name} takes {share:.0%} of the time at least and waits for memory, but a "
            f"multiprocessor holds only {warps} of {most} warps to hide that, because of {limit} "
            f"({launch['registers']} registers per thread, {launch['shared_bytes']} bytes of shared memory per block)."
        )
        figures = {"share_of_time": share, "warps": warps, "most_warps": most}
        figures |= {"registers": launch["registers"], "shared_bytes": launch["shared_bytes"]}
        yield Advice(text, (row.name,), figures, None)


_RULES = (_narrower_weights, _faster_arithmetic, _below_roof, _generic_kernels, _short_calls, _few_warps)
