"""Batches of sequences on an emulated GPU: results are those of a processor, and bits do not depend on neighbours."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import onnx.parser
import pytest

import moec
from moec.artifacts.loading import device_of
from moec.common.errors import InputError, MoecError
from moec.runtime.held import PAGE
from moec.runtime.model import CompiledModel
from moec.runtime.page_pool import BLOCK
from moec.runtime.run_memory import FEW_TOKENS_ON_GPU
from moec.simulators.cuda.driver import driver_calls
from moec.targets.cuda import nvcc
from moec.targets.cuda.dense_products import choices
from moec.targets.gpu.kernels.attention_operands import FEW_QUERIES
from moec.targets.gpu.kernels.dense_problem import dense_problem

from ...frontend.gguf import tiny_models
from ...runtime.test_batch import finish
from ...runtime.tiny_decoder import VOCABULARY, tiny_decoder, tiny_hybrid
from .test_held_states import CAPTURING, TEXT

LENGTHS = (1, PAGE - 1, PAGE, PAGE + 1, 600)


def compiled(model: onnx.ModelProto | pathlib.Path, target: str = "cuda", **options: object) -> moec.CompiledModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvcc, "find_tool", lambda _name: None)
        return moec.compile(model, target=target, batches=True, emulate=True, **options)


@pytest.fixture(scope="module")
def on_cuda() -> moec.CompiledModel:
    return compiled(onnx.parser.parse_model(TEXT))


@pytest.fixture(scope="module")
def on_cpu() -> moec.CompiledModel:
    return moec.compile(onnx.parser.parse_model(TEXT), batches=True)


def tokens(count: int, seed: int = 0, vocabulary: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, count)


def check(batches: list[moec.Batch], tolerance: float = 1e-4) -> dict[int, np.ndarray]:
    """Finish both batches, and compare the results."""
    actual, expected = map(finish, batches)
    assert actual.keys() == expected.keys()
    for number, logits in expected.items():
        np.testing.assert_allclose(actual[number], logits, rtol=tolerance, atol=tolerance)
    return actual


def alone(model: moec.CompiledModel, *parts: np.ndarray) -> np.ndarray:
    """The last logits of a sequence in a batch of its own."""
    batch = model.batch(1, 4 * PAGE)
    number, result = batch.add(parts[0]), finish(batch)
    for part in parts[1:]:
        batch.extend(number, part)
        result = finish(batch)
    return result[number]


def test_sequences_join_leave_fork_and_step_back(on_cuda, on_cpu):
    batches = [model.batch(6, 16 * PAGE) for model in (on_cuda, on_cpu)]
    numbers = [batches[0].add(tokens(count, count)) for count in LENGTHS]
    assert numbers == [batches[1].add(tokens(count, count)) for count in LENGTHS]
    results = check(batches)
    for number, count in zip(numbers, LENGTHS, strict=True):
        np.testing.assert_array_equal(results[number], alone(on_cuda, tokens(count, count)))
    for batch in batches:
        batch.remove(numbers[0])
        copies = [batch.fork(numbers[-1]), batch.fork(numbers[1])]
        batch.truncate(numbers[3], 200)
        for number in (*numbers[1:], *copies):
            batch.extend(number, tokens(1 + number % 3, number))
    results = check(batches)
    assert batches[0].free_pages == batches[1].free_pages
    for number, count, start in ((copies[0], 600, 600), (numbers[-1], 600, 600), (numbers[3], PAGE + 1, 200)):
        own = tokens(count, count)[:start], tokens(1 + number % 3, number)
        np.testing.assert_array_equal(results[number], alone(on_cuda, *own))


def test_a_program_that_computes_all_logits_returns_those_that_are_wanted(on_cuda, on_cpu):
    """No product with a vocabulary makes these logits, so the program does not compute some of them alone."""
    for model in (on_cuda, on_cpu):
        batch, session = model.batch(2, 2 * PAGE), model.session()
        batch.add(tokens(9, 1))
        number = batch.add(tokens(17), last=3)
        expected = session.run(tokens(17)[None], last=3)[0]
        np.testing.assert_allclose(batch.step()[number], expected, rtol=1e-5, atol=1e-5)


def test_a_fork_copies_a_page_on_the_device_when_it_writes(on_cuda):
    batch = on_cuda.batch(2, 4 * PAGE)
    first = batch.add(tokens(PAGE + 7))
    finish(batch)
    second = batch.fork(first)
    assert batch.free_pages == 2
    for number, seed in ((first, 1), (second, 2)):
        batch.extend(number, tokens(2, seed))
        result = batch.step()[number]  # one at a time: the other's tokens must not change
        np.testing.assert_array_equal(result, alone(on_cuda, tokens(PAGE + 7), tokens(2, seed)))
    assert batch.free_pages == 1


@pytest.mark.parametrize(
    ("earlier", "count", "waiting"),
    [
        (40, 41, 25),  # 9 tokens would be computed by the kernels of steps
        (40, 33, 17),
        (40, 32, 32),
        (16, 40, 40),  # the earlier prompt was
        (PAGE + 40, PAGE + 16, 16),
        (PAGE + 40, PAGE + 40, 24),
    ],
)
def test_a_token_is_computed_by_the_same_kernels_behind_a_shared_beginning(on_cuda, earlier, count, waiting):
    assert FEW_TOKENS_ON_GPU == FEW_QUERIES == BLOCK
    batch, prompt = on_cuda.batch(2, 4 * PAGE), tokens(2 * PAGE)
    batch.add(prompt[:earlier])
    finish(batch)
    number = batch.add(prompt[:count])
    assert batch.waiting(number) == waiting
    np.testing.assert_array_equal(finish(batch)[number], alone(on_cuda, prompt[:count]))


@pytest.mark.parametrize("tokens_of_all", [1 << 40, 1 << 60])  # the bytes of the second one are 0 modulo 2^64
def test_pages_that_no_memory_has_are_refused(on_cuda, tokens_of_all):
    with pytest.raises(MoecError, match=f"there is no memory for {tokens_of_all} tokens of state 'k'"):
        on_cuda.batch(8, tokens_of_all)


def test_a_batch_that_is_full_says_so(on_cuda):
    batch = on_cuda.batch(2, PAGE)
    batch.add(tokens(PAGE))
    batch.add(tokens(PAGE, 1))
    with pytest.raises(InputError, match="the batch is full"):
        finish(batch)


def test_steps_of_the_same_sizes_are_launched_as_one_graph(on_cuda):
    """Pages, lengths and tokens change between them, and so does the number of sequences. Parts of prompts are
    launched kernel by kernel."""
    loaded = CompiledModel(on_cuda.artifact, CAPTURING, device_of(on_cuda.artifact, CAPTURING))
    batches = [model.batch(3, 8 * PAGE) for model in (loaded, on_cuda)]
    for batch in batches:
        for count in (3, 2 * PAGE - 2, 40):
            batch.add(tokens(count, count))
    before = driver_calls().get("cuGraphLaunch", 0)
    check(batches, 0)
    assert driver_calls().get("cuGraphLaunch", 0) == before
    for step in range(6):  # one sequence goes on to its third page, and one leaves
        for batch in batches:
            if step == 4:
                batch.remove(batch.sequences[0])
            for number in batch.sequences:
                batch.extend(number, tokens(1, step + number))
        check(batches, 0)
    assert driver_calls()["cuGraphLaunch"] - before == 3  # sizes are captured when they come again


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("make", "target", "options"),
    [
        (tiny_decoder, "cuda:sm_80", {}),
        (tiny_decoder, "cuda:sm_80", {"experts": "int4", "linears": "int8", "passes": "O2,cast-states{dtype=fp16}"}),
        (tiny_decoder, "cuda:sm_90a", {"experts": "bf16", "linears": "bf16", "passes": "O2,cast-states{dtype=bf16}"}),
        (tiny_hybrid, "cuda:sm_80", {}),
    ],
    ids=["plain", "quantised", "wgmma", "recurrent"],
)
def test_whole_models(make, target, options):
    """Experts, windows, recurrences and convolutions. Products take all numbers of rows with one kernel, so that
    neighbours change no bit of a sequence, whichever kernels a session would take."""
    on_cuda, on_cpu = compiled(make(), target, **options), moec.compile(make(), batches=True, **options)
    batches = [model.batch(8, 16 * PAGE) for model in (on_cuda, on_cpu)]
    prompts = [tokens(count, count, VOCABULARY) for count in (5, 300, 1, 600, 33)]
    for batch in batches:
        numbers = [batch.add(prompt) for prompt in prompts]
    results = check(batches, 2e-3)
    for number, prompt in zip(numbers, prompts, strict=True):
        np.testing.assert_array_equal(results[number], alone(on_cuda, prompt))
    for batch in batches:
        copy = batch.fork(3)
        for number in (0, 2, 3, copy):
            batch.extend(number, tokens(1 + number % 3, number, VOCABULARY))
    results = check(batches, 2e-3)
    for number, prompt in ((0, prompts[0]), (2, prompts[2]), (3, prompts[3]), (copy, prompts[3])):
        expected = alone(on_cuda, prompt, tokens(1 + number % 3, number, VOCABULARY))
        np.testing.assert_array_equal(results[number], expected)


@pytest.mark.nightly
def test_latents_are_read_where_they_lie(tmp_path):
    """Values are the first columns of keys."""
    path = tiny_models.write_model("deepseek2", tmp_path / "model.gguf", "F32")
    on_cpu, on_cuda = moec.compile(path), compiled(path)
    batch, lengths = on_cuda.batch(4, 8 * PAGE), (5, 300, 1, 33)
    prompts = [tokens(count, count, tiny_models.VOCABULARY) for count in lengths]
    numbers = [batch.add(prompt) for prompt in prompts]
    results = finish(batch)
    for number, prompt in zip(numbers, prompts, strict=True):
        np.testing.assert_array_equal(results[number], alone(on_cuda, prompt))
        np.testing.assert_allclose(results[number], on_cpu.session().run(prompt)[0], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100a"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_kernel_multiplies_any_number_of_rows(architecture, dtype):
    problem = dense_problem(64, 4096, dtype=dtype, matrix_dtype=dtype, out_dtype=dtype)
    alike = choices(problem, architecture, alike=True)
    assert len({choice.selection.kernel.name for choice in alike}) == 1
    ranges = [choice.rows for choice in alike]
    assert (ranges[0].least, ranges[-1].most) == (0, None)
    assert all(later.least == (earlier.most or 0) + 1 for earlier, later in itertools.pairwise(ranges))
    usual = choices(problem, architecture)
    assert len({choice.selection.kernel.name for choice in usual}) > 1
