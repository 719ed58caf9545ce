"""One MoE layer on a GPU, tokens and router logits in, tokens out: moec against its peers.

    python benchmarks/gpu_moe.py [--layers qwen3 mixtral] [--tokens 1 16 4096] [--contestants moec grouped_mm]
                                 [--rounds 30] [--json gpu_moe.json]

Contestants that are not installed are left out with a message, and so is one whose results are wrong. Weights are
random bfloat16; the caches are emptied before every call. Ends with exit code 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from layers import LAYERS, Layer
from peers import AbsentError
from rich.console import Console
from rich.table import Table

from moec.common.errors import MoecError
from moec.common.roofline import Roofline
from moec.targets.cuda.device.driver import open_driver
from moec.targets.cuda.device.gpu import best_binary
from moec.targets.cuda.hardware.architectures import LIMITS
from moec.targets.cuda.roofline import measure_roofline

if TYPE_CHECKING:
    from gpu_contestants import Contestant

TOKENS = (1, 4, 16, 256, 4096, 32768)
NAMES = ("qwen3", "gpt-oss", "mixtral")
NO_GPU = 2
PIPE_WIDTH = 160  # columns of tables that go into a file
ARITHMETIC = "bfloat16"
CHECKED_TOKENS = 16
LARGEST_ERROR = {"moec int4": 0.2, "moec mxfp4": 0.25}
"""Largest errors of contestants that round weights to 4 bits: slightly above the formats' own."""
LARGEST_ERROR_OF_BFLOAT16 = 0.02
"""Largest error as a share of the norm of the float32 results, like all errors here."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Measurements of one contestant with a number of tokens. ``bytes_moved``: the active experts' weights, and the
    tokens."""

    layer: str
    tokens: int
    contestant: str
    seconds: float
    error: float
    operations: int
    bytes_moved: float

    def row(self, roofline: Roofline, moec: float | None) -> list[str]:
        """Write the table's row. ``moec``: the seconds of moec, if it took part."""
        operations, moved = self.operations / self.seconds, self.bytes_moved / self.seconds
        return [
            f"{self.tokens}",
            self.contestant,
            f"{self.seconds * 1e6:.1f}",
            f"{operations / 1e12:.1f}",
            f"{operations / roofline.peak(ARITHMETIC):.2f}",
            f"{moved / 1e9:.0f}",
            f"{moved / roofline.bandwidth:.2f}",
            "-" if moec is None else f"{self.seconds / moec:.2f}",
            f"{self.error:.2g}",
        ]


COLUMNS = (
    *("tokens", "contestant", "us (median)", "TFLOP/s", "of matmul peak", "GB/s", "of copy bandwidth"),
    *("time / moec's", "error"),
)


def obstacle() -> str | None:
    """Explain why nothing can be measured here. Returns None where it can."""
    try:
        gpus = open_driver().gpus()
    except MoecError as error:
        return str(error)
    if not gpus:
        return "the driver finds no GPU"
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return None if torch.cuda.is_available() else "PyTorch is installed without CUDA"


def measure_layer(layer: Layer, arguments: argparse.Namespace, say: Callable[[str], None]) -> list[Figures]:
    from gpu_layers import active_experts, make_inputs, make_weights, reference
    from gpu_timing import interleaved, median

    figures = []
    weights = make_weights(layer, "cuda")
    contestants = built(weights, arguments, say)
    for tokens in arguments.tokens:
        x, logits = make_inputs(layer, tokens, "cuda")
        expected = reference(weights, x[:CHECKED_TOKENS], logits[:CHECKED_TOKENS])
        errors = errors_of(contestants, x, logits, expected, say)
        calls = {name: functools.partial(contestants[name].call, x, logits) for name in errors}
        active, operations = active_experts(layer, logits), layer.operations(tokens)
        for name, seconds in interleaved(calls, arguments.rounds).items():
            moved = active * layer.weights_per_expert * contestants[name].bits / 8 + 2 * x.nbytes
            row = Figures(layer.name, tokens, name, median(seconds), errors[name], operations, moved)
            figures.append(row)
    return figures


def errors_of(
    contestants: Mapping[str, Contestant], x: Any, logits: Any, expected: Any, say: Callable[[str], None]
) -> dict[str, float]:
    """Compute the errors of the contestants, by name. Those with wrong results are reported and left out."""
    from gpu_contestants import relative_error

    errors = {}
    for name, contestant in contestants.items():
        try:
            error = relative_error(contestant.call(x, logits)[: len(expected)], expected)
        except Exception as problem:  # any error of a peer means its absence, not the end of the table
            lines = str(problem).splitlines() or ["no reason given"]
            say(f"{name} with {len(x)} tokens: {type(problem).__name__}: {lines[0]}")
            continue
        if error <= LARGEST_ERROR.get(name, LARGEST_ERROR_OF_BFLOAT16):  # False for NaN
            errors[name] = error
        else:
            say(f"{name} with {len(x)} tokens: its results are wrong, error {error:.2g}")
    return errors


def built(weights: Any, arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Contestant]:
    """Build the contestants that can take part, by name."""
    from gpu_contestants import CONTESTANTS

    target = f"cuda:{best_binary(list(LIMITS), open_driver().gpus()[0].capability, 'moec')}"
    contestants = {}
    for name in arguments.contestants or CONTESTANTS:
        try:
            contestants[name] = CONTESTANTS[name](weights, target)
        except (AbsentError, MoecError) as reason:
            say(f"{name} is left out: {reason}")
    return contestants


def tables(figures: Iterable[Figures], roofline: Roofline) -> list[Table]:
    """Make one table for each layer."""
    rows = list(figures)
    by_layer: dict[str, list[Figures]] = {}
    for row in rows:
        by_layer.setdefault(row.layer, []).append(row)
    moec = {(row.layer, row.tokens): row.seconds for row in rows if row.contestant == "moec"}
    shown = []
    for name, group in by_layer.items():
        table = Table(title=str(LAYERS[name]))
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "contestant" else "right")
        for row in group:
            table.add_row(*row.row(roofline, moec.get((row.layer, row.tokens))))
        shown.append(table)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", nargs="+", choices=[name for name, layer in LAYERS.items() if layer.gated], default=list(NAMES)
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--contestants", nargs="+", help="default: all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    reason = obstacle()
    if reason is not None:
        print(f"gpu_moe.py needs a GPU: {reason}", file=sys.stderr)
        sys.exit(NO_GPU)
    from gpu_contestants import CONTESTANTS

    unknown = sorted(set(arguments.contestants or ()) - CONTESTANTS.keys())
    if unknown:
        parser.error(f"unknown contestant {unknown[0]!r}; known: {', '.join(CONTESTANTS)}")
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    roofline = measure_roofline(threads=1)
    bandwidth, peak = roofline.bandwidth / 1e9, roofline.peak(ARITHMETIC) / 1e12
    console.print(f"copy bandwidth {bandwidth:.0f} GB/s, bf16 matmul peak {peak:.0f} TFLOP/s, both measured now")
    figures = [row for name in arguments.layers for row in measure_layer(LAYERS[name], arguments, console.print)]
    for table in tables(figures, roofline):
        console.print(table)
    if arguments.json:
        content = {"roofline": roofline.as_data(), "figures": [dataclasses.asdict(row) for row in figures]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
