"""Output of commands for people, as rich renderables made from plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moec import targets
from moec.common.tables import table
from moec.compiling.arithmetic import described
from moec.inspect.alike import merged, names, words_of
from moec.runtime.manifest import Manifest
from moec.runtime.tuning import NEVER

_KERNELS_SHOWN = 10


def summary(manifest: Manifest, path: str) -> str:
    """Write the line that ends a compilation: kernels counted by program, and the arithmetic of products."""
    kernels = " + ".join(str(len(program.kernels)) for program in manifest.programs)
    contents = f"{kernels} kernels" if kernels else f"{len(manifest.projects)} projects in {path}/projects"
    arithmetic = described(manifest)
    return f"{path}: {len(manifest.moe_blocks)} MoE blocks, {contents}{arithmetic and f'; {arithmetic}'}"


def found_blocks_table(raised: Sequence[dict[str, Any]], unraised: Sequence[dict[str, Any]]) -> Table:
    """Show everything that looks like an MoE block; ``raised`` as :func:`moec.ir.blocks.moe_blocks` describes them."""
    rows = [
        ("yes", block["name"], block["num_experts"], block["top_k"], block["router"], block["formulation"])
        for block in raised
    ]
    rows += [
        ("no", block["node"], block["experts"], block["top_k"], block["router"], block["reason"]) for block in unraised
    ]
    cells = [tuple("?" if cell in (None, "") else str(cell) for cell in row) for row in rows]
    headings = ("raised", "node", "experts", "top-k", "router", "written as, or why not")
    return table("What looks like an MoE block", headings, cells)


def remarks_table(remarks: Sequence[Mapping[str, Any]]) -> Table:
    """Show remarks; those with the same text share a row."""
    alike = merged([(remark["severity"], remark["pass_name"], remark["message"]) for remark in remarks])
    rows = [
        (severity, pass_name, names([remarks[place]["subject"] for place in places]), message)
        for places, (severity, pass_name, message) in alike
    ]
    return table("Remarks", ("", "pass", "about", "remark"), rows)


def losses_table(losses: Sequence[Mapping[str, Any]]) -> Table:
    """Show the losses of rounding: relative errors of each layer's weights and output. Layers of the same formats whose
    names differ only by numbers share a row, with the least and the largest error."""
    alike = merged(
        [
            (
                "\0".join(words_of(loss["layer"])),
                ", ".join(f"{name} {'+'.join(formats)}" for name, formats in loss["formats"].items()),
                loss["arithmetic"],
            )
            for loss in losses
        ]
    )
    rows = []
    for places, (_, formats, arithmetic) in alike:
        own = [losses[place] for place in places]
        errors = (_share_range([loss[key] for loss in own]) for key in ("weight_error", "output_error"))
        rows.append((names([loss["layer"] for loss in own]), formats, arithmetic, *errors))
    return table("Rounded weights", ("layer", "formats", "arithmetic", "error of weights", "of output"), rows)


def _share_range(shares: Sequence[float]) -> str:
    texts = dict.fromkeys((f"{min(shares):.2%}", f"{max(shares):.2%}"))
    return " to ".join(texts)


def verification_table(verification: dict[str, Any]) -> Table:
    rows = [
        (
            "" if index else _sizes(case["inputs"]),
            difference["output"],
            shape_text(difference["shape"]),
            _number(difference["absolute"]),
            _number(difference["relative"]),
            _number(difference["norm"]),
            ("match" if difference["matches"] else "DIFFERS")
            + (f": {difference['note']}" if difference["note"] else ""),
        )
        for case in verification["cases"]
        for index, difference in enumerate(case["differences"])
    ]
    rows += [
        (_sizes(case["inputs"]), "", "", "", "", "", "NOT RUN") for case in verification["cases"] if case["failure"]
    ]
    title, norm = f"Compared with {_reference(verification['cases'])}", "norm"
    if verification["rounded"]:
        title, norm = "Compared with the rounded model in the reference interpreter", "norm, from the original"
    within = f"within {verification['tolerance']:g}" + (" or spread" if verification["spread"] else "")
    return table(title, ("inputs", "output", "shape", "largest abs", "largest rel", norm, within), rows)


def _reference(cases: Sequence[dict[str, Any]]) -> str:
    noted = [case["note"] is not None for case in cases if not case["failure"]]
    if any(noted):
        return "the reference interpreter" if all(noted) else "onnxruntime, or the reference interpreter where it fails"
    return "onnxruntime"


def bench_tables(result: dict[str, Any]) -> Iterator[RenderableType]:
    rows = [
        (_sizes(case["inputs"]), name, f"{times['min']:.3f}", f"{times['median']:.3f}", str(times["runs"]))
        for case in result["cases"]
        for name, times in case["milliseconds"].items()
    ]
    weights = "{pages} ({reason})".format_map(result["weights"])
    yield table(
        f"Milliseconds, {result['threads']} threads, weights {weights}", ("inputs", "", "min", "median", "runs"), rows
    )
    yield _roofline_table(result["roofline"])
    headings = ("kernel", "calls", "milliseconds", "10^9 op/s", "GB/s", "share of roofline")
    for case in result["cases"]:
        slowest = [_kernel_cells(row) for row in case["kernels"][:_KERNELS_SHOWN]]
        yield table(f"Slowest kernels, {_sizes(case['inputs'])}", headings, slowest)


def sessions_table(result: dict[str, Any]) -> Table:
    """Show tokens per second, with llama-bench's names of the tests."""
    rows = []
    for test in result["tests"]:
        rate = test["tokens_per_second"]
        rate_text = f"{rate['mean']:.2f} ± {rate['deviation']:.2f}"
        name = test["test"] + (f" @ d{test['depth']}" if test["depth"] else "")
        shares = [f"{share:.0%}" for share in (test["shares"] or {}).values()] or ["-", "-", "-"]
        rows.append(
            (name, rate_text, f"{rate['median']:.2f}", f"{rate['min']:.2f}", str(len(test["seconds"])), *shares)
        )
    weights = "{pages} ({reason})".format_map(result["weights"])
    title = f"Tokens per second, {result['threads']} threads, weights {weights}"
    headings = ("test", "mean ± deviation", "median", "min", "runs", "in loops", "at barriers", "between")
    return table(title, headings, rows)


def _roofline_table(roofline: dict[str, Any]) -> RenderableType:
    rows = [("memory read", pages, f"{value:.1f} GB/s") for pages, value in roofline["read_gb_per_s"].items()]
    rows += [(peak["arithmetic"], peak["unit"], f"{peak['gop_per_s']:.0f} * 10^9 op/s") for peak in roofline["peaks"]]
    return table("This machine at best (the roofline)", ("", "", "measured"), rows)


def _kernel_cells(row: dict[str, Any]) -> tuple[str, ...]:
    operations = "-" if row["gop_per_s"] is None else f"{row['gop_per_s']:.1f}"
    rates = operations, f"{row['gb_per_s']:.1f}", f"{row['share_of_roofline']:.0%}"
    return row["name"], str(row["calls"]), f"{row['milliseconds']:.3f}", *rates


def tuning_tables(tuned: Sequence[dict[str, Any]]) -> Iterator[RenderableType]:
    if not tuned:
        yield Text("nothing to tune: no kernel of the artifact has two ways to compute")
        return
    rows = [
        (
            crossover["name"],
            ", ".join(crossover["kernels"]),
            _crossover(crossover["before"]),
            _crossover(crossover["rows"]),
        )
        for crossover in tuned
    ]
    title = "Rows, or tokens on a GPU, from which on kernels take their next way"
    yield table(title, ("shape", "kernels", "before", "measured"), rows)


def _crossover(rows: int) -> str:
    return "never" if rows == NEVER else str(rows)


def doctor_tables(findings: dict[str, Any]) -> Iterator[RenderableType]:
    keys = ("moec", "python", "system", "cpu", "cores")
    machine = [(key, str(findings[key])) for key in keys]
    machine.append(("vector features", ", ".join(findings["vector_features"]) or "none known"))
    yield table("This machine", ("", ""), machine)
    versions = [(name, version or "not installed") for name, version in findings["versions"].items()]
    yield table("Packages", ("package", "version"), versions)
    compilers = [(name, path or "not found") for name, path in findings["compilers"].items()]
    yield table("Compilers (the CPU target needs none)", ("compiler", "path"), compilers)
    for kind in targets.kinds():
        yield from kind.finding_tables(findings)
    kept = [
        (
            folder["kind"],
            folder["folder"],
            str(folder["entries"]),
            f"{folder['bytes'] / 1e6:.1f}",
            f"{folder['limit'] / 1e6:.0f}",
        )
        for folder in findings["cache"]
    ]
    yield table("Cache of compiled code", ("kind", "folder", "entries", "MB", "limit, MB"), kept)
    for folder in findings["cache"]:
        if folder["refused"]:
            yield Text(f"the cache of {folder['kind']} is not used: {folder['refused']}")
    for problem in findings["problems"]:
        yield Text(f"problem: {problem}")
    if not findings["problems"]:
        yield Text("everything the CPU target needs is there")


def shape_text(sizes: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _sizes(inputs: dict[str, Sequence[int]]) -> str:
    return ", ".join(f"{name}{shape_text(shape)}" for name, shape in inputs.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
