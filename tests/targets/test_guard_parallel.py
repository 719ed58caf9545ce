"""Generic kernels use threads only where there is enough work, and give the same result either way."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from moec.targets.tvm.phases.guard_parallel import GuardParallelLoops
from moec.targets.tvm.phases.schedule import PARALLEL_THRESHOLD, WORK

LAUNCH = "TVMBackendParallelLaunch"
TEXT = "agraph (float[T,4] x) => (float[T,4] y) { a = Exp(x) y = Neg(a) }"


def test_a_dynamic_kernel_chooses_when_it_runs(program_of, runner_of):
    program = program_of(TEXT)
    (kernel,) = program.kernels
    assert kernel.sources["llvm"].count(LAUNCH) == 1
    run = runner_of(program)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((20000, 4)).astype(np.float32)
    many = run({"x": x})["y"]
    few = np.concatenate([run({"x": part})["y"] for part in np.split(x, 2000)])
    np.testing.assert_array_equal(many, few)


@pytest.mark.parametrize(("rows", "parallel"), [(8, False), (50000, True)])
def test_a_static_kernel_is_decided_when_it_is_compiled(program_of, rows, parallel):
    (kernel,) = program_of(TEXT.replace("T,", f"{rows},")).kernels
    assert (LAUNCH in kernel.sources["llvm"]) is parallel


def test_the_choice_uses_no_subexpression_that_is_named_inside_the_loop(program_of, runner_of):
    """Here the inner loop's extent, T + 1, is such a subexpression."""
    constants = "float[3,1] s = {1, 2, 3}, int64[1] zero = {0}, int64[1] one = {1}"
    body = 'n = Shape (x) p = Concat <axis = 0> (zero, n) y = Pad (s, p, "", one)'
    run = runner_of(program_of(f"agraph (float[T] x) => (float[3,N] y) <{constants}> {{ {body} }}"))
    np.testing.assert_array_equal(run({"x": np.ones(2, np.float32)})["y"], [[1, 0, 0], [2, 0, 0], [3, 0, 0]])


def test_threads_share_all_loops_but_the_innermost(program_of, runner_of):
    """Neither the batch of one nor the three rows of it would occupy many threads."""
    text = "agraph (float[B,3,T,5] x) => (float[B,T,3,5] y) { a = Transpose <perm = [0, 2, 1, 3]> (x) y = Neg(a) }"
    program = program_of(text)
    (kernel,) = program.kernels
    assert kernel.sources["llvm"].count(LAUNCH) == 1
    run, generator = runner_of(program), np.random.default_rng(0)
    for batch, rows in ((1, 3000), (2, 700), (3000, 1), (0, 4), (4, 0)):
        x = generator.standard_normal((batch, 3, rows, 5)).astype(np.float32)
        np.testing.assert_array_equal(run({"x": x})["y"], -x.transpose(0, 2, 1, 3))


@pytest.mark.parametrize(("annotations", "branches"), [({}, 0), ({WORK: 1000}, 1)])
def test_other_kernels_choose_where_their_loop_says_how_much_work_a_turn_is(annotations, branches):
    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle):
        rows = T.int64()
        x = T.match_buffer(x_handle, (rows,), "float32")
        for row in T.parallel(rows, annotations=annotations):
            x[row] = T.float32(1)

    text = GuardParallelLoops()(tvm.IRModule({"kernel": kernel}))["kernel"].script()
    assert text.count("T.parallel") == 1
    assert text.count(f"rows * T.int64(1000) >= T.int64({PARALLEL_THRESHOLD})") == branches
    assert text.count("else:") == branches
