"""The step of one peer: a layer of experts by PyTorch's grouped_mm or by kernels in Triton, checked and timed.

    python -m carried.peers_step PEER EXPERTS CHOSEN WIDTH HIDDEN TOKENS

The code is that of moec's benchmarks, which the kit carries. Numbers are made on the device.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

from .places import options

CHECKED = 16
LARGEST_ERROR = 0.02
ROUNDS = 20


@dataclasses.dataclass(frozen=True)
class PeerLayer:
    """Sizes of a layer, as the benchmarks' layers have them."""

    experts: int
    chosen: int
    width: int
    hidden: int


def main() -> int:
    asked = options(__doc__, "peer", "experts", "chosen", "width", "hidden", "tokens")
    sys.path.insert(0, str(asked.folder / "benchmarks"))
    import gpu_layers
    import torch
    from gpu_timing import interleaved

    layer = PeerLayer(*(int(getattr(asked, name)) for name in ("experts", "chosen", "width", "hidden")))
    tokens = int(asked.tokens)
    weights: Any = gpu_layers.make_weights(layer, "cuda")
    call = _call(asked.peer, weights)
    x, logits = gpu_layers.make_inputs(layer, tokens, "cuda")
    expected = gpu_layers.reference(weights, x[:CHECKED], logits[:CHECKED])
    difference = call(x, logits)[:CHECKED].float() - expected
    error = float(torch.linalg.norm(difference) / torch.linalg.norm(expected))
    seconds = interleaved({asked.peer: functools.partial(call, x, logits)}, ROUNDS)[asked.peer]
    least, median = min(seconds), statistics.median(seconds)
    rate = 6 * tokens * layer.chosen * layer.width * layer.hidden / median / 1e12
    print(f"* {asked.peer}, T={tokens}: {least * 1e6:.1f} us least, {median * 1e6:.1f} us median, {rate:.1f} TFLOP/s")
    print(f"* error {error:.2g} of the norm{'' if error <= LARGEST_ERROR else ', WRONG'}", flush=True)
    return 0 if error <= LARGEST_ERROR else 1


def _call(peer: str, weights: Any) -> Callable[..., Any]:
    if peer == "triton":
        from gpu_triton import fused_moe

        return functools.partial(fused_moe, weights)
    from gpu_grouped import grouped_moe, grouped_product

    product = grouped_product()
    if product is None:
        raise SystemExit("this version of PyTorch has no grouped_mm")
    return functools.partial(grouped_moe, weights, product)


if __name__ == "__main__":
    sys.exit(main())
