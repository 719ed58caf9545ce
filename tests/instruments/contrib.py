"""Random configurations of onnxruntime's own operators, against onnxruntime.

python -m tests.instruments.contrib 500            # configurations of all operators in turns
python -m tests.instruments.contrib 100 --seed 7 --operator MoE
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ..isolated import Worker
from . import contrib_arithmetic as arithmetic
from . import contrib_attention as attention
from . import contrib_experts as experts
from .configurations import Choices, Configuration, drawn, shrunk
from .one_node import Node, case_of
from .outcomes import Outcome, judge, started_worker, table


@dataclasses.dataclass(frozen=True)
class Operator:
    choices: Choices
    node: Callable[[Configuration], Node]


OPERATORS: dict[str, Operator] = {
    "Attention": Operator(attention.ATTENTION, attention.attention),
    "BiasGelu": Operator(arithmetic.BIAS_GELU, arithmetic.bias_gelu),
    "CausalConvWithState": Operator(arithmetic.CAUSAL_CONV, arithmetic.causal_conv_with_state),
    "FastGelu": Operator(arithmetic.FAST_GELU, arithmetic.fast_gelu),
    "FusedGemm": Operator(arithmetic.FUSED_GEMM, arithmetic.fused_gemm),
    "FusedMatMul": Operator(arithmetic.FUSED_MATMUL, arithmetic.fused_matmul),
    "Gelu": Operator(arithmetic.ACTIVATION, arithmetic.gelu),
    "GroupQueryAttention": Operator(attention.GROUP_QUERY_ATTENTION, attention.group_query_attention),
    "MatMulNBits": Operator(experts.MATMUL_N_BITS, experts.matmul_n_bits),
    "MoE": Operator(experts.MOE, experts.moe),
    "MultiHeadAttention": Operator(attention.MULTI_HEAD_ATTENTION, attention.multi_head_attention),
    "QMoE": Operator(experts.QMOE, experts.qmoe),
    "QuickGelu": Operator(arithmetic.QUICK_GELU, arithmetic.quick_gelu),
    "RotaryEmbedding": Operator(attention.ROTARY_EMBEDDING, attention.rotary_embedding),
    "SimplifiedLayerNormalization": Operator(
        arithmetic.SIMPLIFIED_LAYER_NORMALIZATION, arithmetic.simplified_layer_normalization
    ),
    "SkipLayerNormalization": Operator(arithmetic.SKIP_LAYER_NORMALIZATION, arithmetic.skip_layer_normalization),
    "SkipSimplifiedLayerNormalization": Operator(
        arithmetic.SKIP_LAYER_NORMALIZATION, arithmetic.skip_simplified_layer_normalization
    ),
}


def check(name: str, configuration: Configuration, worker: Worker, seed: int = 0) -> Outcome:
    return judge(case_of(OPERATORS[name].node(configuration), configuration["dtype"], seed), worker)


def sweep(count: int, seed: int, worker: Worker, names: list[str]) -> Iterator[tuple[str, Configuration, Outcome]]:
    """``count`` configurations that onnxruntime runs, and the ones in between that it refuses."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        name, skipped = names[number % len(names)], True
        while skipped:
            configuration = drawn(OPERATORS[name].choices, generator)
            outcome = check(name, configuration, worker)
            skipped = outcome.status == "skipped"
            yield name, configuration, outcome


def smallest(name: str, configuration: Configuration, outcome: Outcome, worker: Worker) -> str:
    """The failure in fewest words, as a call that repeats it."""

    def fails(other: Configuration) -> bool:
        return check(name, other, worker).status == outcome.status

    result = shrunk(configuration, OPERATORS[name].choices, fails)
    simplest = {key: values[0] for key, values in OPERATORS[name].choices.items()}
    changed = {key: value for key, value in result.items() if value != simplest[key]}
    return f"{name} {changed}: {check(name, result, worker).detail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operator", action="append", choices=sorted(OPERATORS))
    parser.add_argument("--show", action="append", default=[], choices=("refused", "skipped"), help="say why")
    arguments = parser.parse_args()
    worker, outcomes = started_worker(), []
    for name, configuration, outcome in sweep(
        arguments.count, arguments.seed, worker, arguments.operator or list(OPERATORS)
    ):
        outcomes.append((name, outcome))
        if outcome.failed:
            print(f"{outcome.status}: {smallest(name, configuration, outcome, worker)}", flush=True)
        elif outcome.status in arguments.show:
            print(f"{outcome.status}: {name}: {outcome.detail}", flush=True)
    worker.close()
    print(table(outcomes))


if __name__ == "__main__":
    main()
