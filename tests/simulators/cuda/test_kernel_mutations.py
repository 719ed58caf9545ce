"""Each barrier, wait and commit of the project's kernels is needed: without one of them a run is wrong or fails. The
qualifiers and clobbers of their assembly are needed too."""

from __future__ import annotations

import ctypes
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.simulators.cuda import emulated_library
from moec.simulators.cuda.translate import translate_assembly
from moec.targets.cuda.kernels.attention_mma import attention_mma
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma
from moec.targets.cuda.kernels.grouped_gemm_umma import grouped_gemm_umma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.gpu.kernels import dispatch
from moec.targets.gpu.kernels.combining_gemv import CombiningProblem, combining_gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.packed_format import PackedFormat
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.heavy.experts import CombineProblem

from ...targets.cuda.kernels import kernel_runner
from ...targets.cuda.kernels.layers import Data, GroupedKernel, Layer, sort_pairs, undefined

CALLS = {
    "barrier": re.compile(r"^ +cta_sync\(\);$", re.MULTILINE),
    "commit": re.compile(r"^ +cp_async_commit_group\w*\(\);$", re.MULTILINE),
    "wait": re.compile(
        r"^ +cp_async_wait_group\w*_(?:[1-9]\(\);$|0\(\);(?=\n +cta_sync))",
        re.MULTILINE,
    ),
    "wait for a phase": re.compile(r"^ +mbarrier_wait\([^;]*\);$", re.MULTILINE),
    "wait for products": re.compile(r"^ +wgmma_wait_group\w*\(\);$", re.MULTILINE),
    "wait for sums": re.compile(r"^ +tcgen05_wait\(\);$", re.MULTILINE),
    "fence of sums": re.compile(r"^ +tcgen05_fence_\w+\(\);$", re.MULTILINE),
    "commit of products": re.compile(r"^ +tcgen05_commit\w*\([^;]*\);$", re.MULTILINE),
    "proxy fence": re.compile(r"^ +fence_proxy\w*\(\);$", re.MULTILINE),
    "barrier of a cluster": re.compile(
        r"^ +barrier_cluster_arrive\w*\(\);\n +barrier_cluster_wait\w*\(\);$", re.MULTILINE
    ),
    "fence of barriers": re.compile(r"^ +fence_mbarrier_init\w*\(\);$", re.MULTILINE),
}
VALUES = {
    "stage released by one block of the cluster": (re.compile(r"mbarrier_init\([^;]*&empty\[\w+\]\), (2u)\)"), "1u"),
    "accumulator drained by one warp": (re.compile(r"mbarrier_init\([^;]*&drained\[\w+\]\), (4u)\)"), "1u"),
    "accumulator drained by one block of a pair": (re.compile(r"mbarrier_init\([^;]*&drained\[\w+\]\), (8u)\)"), "4u"),
    "stage decoded by one block of a pair": (re.compile(r"mbarrier_init\([^;]*&full\[\w+\]\), (257u)\)"), "129u"),
    "half of a pair's rows": (re.compile(r"bool is_half\w* = (\w+_ptr\[[^;]*\] < 0);"), "true"),
    "rows of the other block of a pair": (re.compile(r"\+ (rank) \* \(is_half"), "(rank ^ 1)"),
    "matrix copied to a block that needs another": (re.compile(r"\(ushort\)\((shares \? 3 : 1 << rank)\)"), "3"),
}
"""Values of a source, and others in place of them that are wrong."""
SEVERAL_TILES = 300
"""A number of tokens with which a block of threads has about three tiles of 64 rows."""
SEVERAL_PAIRS = 560
"""A number of tokens with which a cluster has three pairs of tiles of 128 rows, of which one belongs to two experts,
and a pair of blocks of threads three tiles of 256 rows or four, of which some have at most 128. With two, it would use
each accumulator only once, and would not have to wait for it."""
TEN_K_TILES = 584
"""A number of inputs with which a tile has more k-tiles than the ring has stages. Only then can a consumer of wgmma
mistake an older phase for its own, and can a stage be filled again while half a tile is multiplied."""

Case = tuple[Any, str, list[np.ndarray], int]
"""A kernel, its architecture, its arguments, and the number of outputs, which are the last arguments."""


def _dispatch() -> Case:
    ids = np.random.default_rng(0).integers(-1, 40, (64, 2)).astype(np.int32)
    blocks = dispatch.most_blocks(40, ids.size, 16)
    outputs = [np.full(size, -7, np.int32) for size in (blocks * 16, blocks, 1)]
    return dispatch.dispatch(40, 16), "sm_80", [ids, *outputs], 3


def _product(
    kernel: GroupedKernel, architecture: str, block_rows: int, tokens: int = 20, inner: int = 256, hidden: int = 384
) -> Case:
    layer = Layer(experts=2, inner=inner, hidden=hidden, block_rows=block_rows, dtype="float16")
    data = Data(layer, np.random.default_rng(0).integers(0, 2, (tokens, 1)))
    order = sort_pairs(2, block_rows, data.ids)
    rows = np.random.default_rng(1).standard_normal((len(order[0]), hidden)).astype(np.float16)
    arrays = [rows, data.down, data.down_bias, data.weights, *order, undefined((tokens, inner), "float16")]
    return kernel(layer.problems[1], lambda total: total), architecture, arrays, 1


def _quantized_product(kernel_of: GroupedKernel, architecture: str, block_rows: int, tokens: int) -> Case:
    _, _, (hidden, _, *others), outputs = _product(kernel_of, architecture, block_rows, tokens)
    random, stored = np.random.default_rng(2), PackedFormat("int4", 32, "float16")
    problem = GroupedProblem(
        2, 384, 256, block_rows, scattered=True, dtype="float16", out_dtype="float16", stored=stored
    )
    codes = random.integers(0, 256, (2, 256, 192)).astype(np.uint8)
    scales, no_zero_points = random.random((2, 256, 12)).astype(np.float16), np.zeros((1, 1, 1), np.uint8)
    kernel = kernel_of(problem, lambda total: total)
    return kernel, architecture, [hidden, codes, scales, no_zero_points, *others], outputs


def _gathered_product(block_rows: int, tokens: int) -> Case:
    layer = Layer(experts=2, inner=136, hidden=32, block_rows=block_rows, dtype="float16")
    data = Data(layer, np.random.default_rng(0).integers(0, 2, (tokens, 1)))
    arrays = [data.x, *data.first, data.weights, *sort_pairs(2, block_rows, data.ids)]
    places = len(arrays[-3])
    kernel = grouped_gemm_umma(layer.problems[0], lambda gate, up: gate * up)
    return kernel, "sm_100a", [*arrays, undefined((places, 32), "float16")], 1


def _combining_product() -> Case:
    """A product that combines eleven slots of a token, eight at once."""
    random, types = np.random.default_rng(0), {"dtype": "float16", "matrix_dtype": "float16", "out_dtype": "float16"}
    product = GroupedProblem(3, 64, 8, scattered=True, **types)
    problem = CombiningProblem(product, CombineProblem(3, 8, "float16", weighted=True, pair_dtype="float16"), 11)
    rows, matrix = (random.standard_normal(shape).astype(np.float16) for shape in ((22, 64), (3, 8, 64)))
    ids, weights = random.integers(-1, 3, (2, 11)).astype(np.int32), random.random((2, 11), np.float32)
    bias = np.zeros((3, 8), np.float32)
    return combining_gemv(problem), "sm_80", [rows, matrix, bias, weights, ids, undefined((2, 8), "float16")], 1


def _attention() -> Case:
    problem, random = AttentionProblem(16, 16, 0.25), np.random.default_rng(0)
    tensors = [random.standard_normal((1, 1, rows, 16)).astype(np.float16) for rows in (20, 140, 140)]
    absent = [np.zeros((1, 1, 1, 1), bool), np.zeros(1, np.int64), np.zeros(1, np.float32)]
    return attention_mma(problem, "float16"), "sm_80", [*tensors, *absent, undefined((1, 1, 20, 16), "float16")], 1


KERNELS: dict[str, Callable[[], Case]] = {
    "dispatch": _dispatch,
    "attention": _attention,
    "product that combines": _combining_product,
    "product for Ampere": lambda: _product(grouped_gemm_mma, "sm_80", 16),
    "product for Ampere, two stages": lambda: _product(grouped_gemm_mma, "sm_80", 64),
    "product for Hopper": lambda: _product(grouped_gemm_wgmma, "sm_90a", 64, SEVERAL_TILES),
    "product for Hopper in clusters": lambda: _product(
        grouped_gemm_wgmma, "sm_90a", 128, SEVERAL_PAIRS, 64, TEN_K_TILES
    ),
    "quantised product for Hopper": lambda: _quantized_product(grouped_gemm_wgmma, "sm_90a", 64, SEVERAL_TILES),
    "product for Blackwell": lambda: _product(grouped_gemm_umma, "sm_100a", 64, SEVERAL_TILES),
    "product for Blackwell in pairs": lambda: _product(grouped_gemm_umma, "sm_100a", 256, SEVERAL_PAIRS, 64, 136),
    "gathered product for Blackwell in pairs": lambda: _gathered_product(256, SEVERAL_PAIRS),
    "quantised product for Blackwell in pairs": lambda: _quantized_product(
        grouped_gemm_umma, "sm_100a", 256, SEVERAL_PAIRS
    ),
}


def _with_a_switch(source: str) -> tuple[list[str], str]:
    """The faults that a source can have, and the source with an exported number ``fault``, the index of the one that it
    has: a call to skip, or another value."""
    faults = [
        (*call.span(), f"without {what} {number}", "if (fault != {position}) {{ {text} }}")
        for what, pattern in CALLS.items()
        for number, call in enumerate(pattern.finditer(source))
    ]
    faults += [
        (*value.span(1), what, f"(fault == {{position}} ? {other} : ({{text}}))")
        for what, (pattern, other) in VALUES.items()
        for value in pattern.finditer(source)
    ]
    faults.sort()
    for position, (start, end, _, form) in reversed(list(enumerate(faults))):
        source = source[:start] + form.format(position=position, text=source[start:end].lstrip()) + source[end:]
    declared = 'extern "C" __attribute__((visibility("default"))) int fault = -1;\n'
    return [name for _, _, name, _ in faults], declared + source


QUICK = {"product for Ampere"}
"""Cases in every run; the others copy and wait in similar ways."""


WITHOUT_ASSEMBLY = {"dispatch", "product that combines"}

Changed = tuple[kernel_runner.Kernel, pathlib.Path]


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Changed]:
    """A function ``changed(kernel, architecture, change)`` that returns the kernel of the changed source, and its
    library."""

    def build(kernel: Any, architecture: str, change: Callable[[str], str]) -> Changed:
        paths: list[pathlib.Path] = []

        def changed_library(source: str, launches: Any, **options: Any) -> pathlib.Path:
            paths.append(emulated_library(change(source), launches, **options))
            return paths[-1]

        with monkeypatch.context() as patch:
            patch.setattr(kernel_runner, "emulated_library", changed_library)
            return kernel_runner.build(kernel, architecture, watch=True), paths[-1]

    return build


def _is_noticed(kernel: kernel_runner.Kernel, arrays: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    try:
        outputs = kernel.outputs(len(expected), *arrays)
    except RuntimeError:
        return True
    return not all(np.array_equal(*pair, equal_nan=True) for pair in zip(expected, outputs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in KERNELS]
)
def test_every_fault_is_noticed(changed, name):
    kernel, architecture, arrays, outputs = KERNELS[name]()
    source = kernel_runner.source_of(kernel, architecture)
    faults, _ = _with_a_switch(source)
    switched, path = changed(kernel, architecture, lambda source: _with_a_switch(source)[1])
    fault = ctypes.c_int.in_dll(ctypes.CDLL(str(path)), "fault")
    fault.value = -1  # a library of the same source may be loaded already
    expected = switched.outputs(outputs, *arrays)
    missed = []
    for fault.value, what in enumerate(faults):
        if not _is_noticed(switched, arrays, expected):
            missed.append(what)
    fault.value = -1
    assert not _is_noticed(switched, arrays, expected)
    if "Hopper" in name or "Blackwell" in name:  # TMA and products swizzle by addresses
        assert "__align__(1024)" in source
        loose, _ = changed(kernel, architecture, lambda source: source.replace("__align__(1024)", "__align__(64)"))
        assert _is_noticed(loose, arrays, expected)
    assert faults and not missed


REGISTERS_ONLY = re.compile(r'asm volatile\("(?:(?:mma|cvt|lop3|prmt|ex2|rcp)\b|mov\.u32 %0, %%cluster_ctarank;)')
"""Instructions whose results follow from registers, and from the rank of a block in its cluster, which stays."""
ORDERED_BY_OTHERS = re.compile(
    r'commit_group|elect\.sync|wgmma\.mma_async|tcgen05\.(?:mma|ld)|setmaxnreg|asm volatile\(""'
)
"""Instructions that touch no memory, or whose neighbours clobber it."""
STATEMENT = re.compile(r"asm volatile\((?:[^()\"]|\"[^\"]*\"|\([^()]*(?:\([^()]*\)[^()]*)*\))*\)")


def _told_less(source: str) -> Iterator[tuple[str, str]]:
    """Variants of a source in which one assembly statement is not volatile, or does not clobber memory."""
    for statement in STATEMENT.finditer(source):
        text, before, behind = statement[0], source[: statement.start()], source[statement.end() :]
        if REGISTERS_ONLY.match(text):
            continue
        yield f"volatile of {text}", before + text.replace(" volatile", "", 1) + behind
        if not ORDERED_BY_OTHERS.search(text):
            yield f"clobber of {text}", before + text.replace('"memory"', "", 1) + behind


@pytest.mark.parametrize("name", KERNELS)
def test_nvcc_is_told_of_all_effects(name):
    kernel, architecture, *_ = KERNELS[name]()
    source = kernel_runner.source_of(kernel, architecture)
    assert translate_assembly(source)
    for what, mutant in _told_less(source):
        with pytest.raises(MoecError, match=r"^inline assembly .*: (is not volatile|does not clobber)"):
            translate_assembly(mutant)
            pytest.fail(what)
    assert name in WITHOUT_ASSEMBLY or any(_told_less(source))
