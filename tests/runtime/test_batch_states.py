"""Batches with states that each run replaces, against sessions of one sequence each, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

import moec
from moec.common.errors import InputError, MoecError
from moec.runtime.batch_program import BatchProgram
from moec.runtime.held import PAGE

from ..frontend.gguf import tiny_models
from .test_batch import Alone, check, finish, steps_of_a_batch, tokens
from .tiny_decoder import tiny_hybrid

ENTRY = 4 * (32 * 3 + 4 * 8 * 8)
"""Bytes of the states of a sequence that each run replaces."""


@pytest.fixture(scope="module")
def model() -> moec.CompiledModel:
    return moec.compile(tiny_hybrid(), batches=True)


def test_sequences_of_different_lengths_have_the_bits_of_sessions(model):
    """Prompts are shorter and longer than the convolution's window; sequences join, leave and pause."""
    batch, alone = model.batch(8, 4096), Alone(model)
    prompts = {batch.add(tokens(count, count)): tokens(count, count) for count in (5, 300, 1, 33, 2, 256, 3)}
    check(finish(batch), {number: alone.run(number, ids) for number, ids in prompts.items()})
    batch.remove(3)
    for seed in range(4):
        if seed == 2:
            joined = batch.add(tokens(7, 70))
            check(batch.step(), {joined: alone.run(joined, tokens(7, 70))})
        new = {number: tokens(1 + 3 * (number == 2), seed) for number in batch.sequences if number != seed}
        for number, ids in new.items():
            batch.extend(number, ids, last=None)
        check(batch.step(), {number: alone.run(number, ids, None) for number, ids in new.items()})


def test_forks_go_on_from_the_same_states(model):
    batch, alone = model.batch(4, 16 * PAGE), Alone(model)
    first = batch.add(tokens(300))
    check(finish(batch), {first: alone.run(first, tokens(300))})
    forks = [batch.fork(first) for _ in range(2)]
    assert batch.state_bytes == 2 * batch.page_bytes + 2 * ENTRY  # one is kept after the first page
    for seed, number in enumerate(forks):
        alone.sessions[number] = alone.sessions[first].fork()
        batch.extend(number, tokens(2, seed))
    check(batch.step(), {number: alone.run(number, tokens(2, seed)) for seed, number in enumerate(forks)})
    batch.extend(first, tokens(1, 9))
    check(batch.step(), {first: alone.run(first, tokens(1, 9))})
    for number in batch.sequences:
        batch.remove(number)
    assert batch.state_bytes == ENTRY


def test_prompts_that_begin_alike_share_up_to_where_states_are_kept(model):
    """They are kept after the last whole page of a prompt, and after the last one that the second prompt shares."""
    batch, alone = model.batch(5, 24 * PAGE), Alone(model)
    system = tokens(2 * PAGE + 30)
    prompts = [np.append(system, tokens(count, count)) for count in (PAGE, 1, 2 * PAGE, 300)]
    waiting = []
    for ids in prompts:
        number = batch.add(ids)
        waiting.append(batch.waiting(number))
        check(finish(batch), {number: alone.run(number, ids)})
    assert waiting == [3 * PAGE + 30, 2 * PAGE + 31, 2 * PAGE + 30, 330]
    assert batch.waiting(batch.add(prompts[2])) == 30
    for number in batch.sequences:
        batch.remove(number)
    again = batch.add(system)
    assert batch.waiting(again) == 30
    check(finish(batch), {again: Alone(model).run(again, system)})


@pytest.mark.parametrize(("pages", "kept"), [(40, [1, 2, 2, 2]), (2, [1, 1, 1, 1])])
def test_states_are_kept_for_two_prompts_of_each_sequence_while_they_have_pages(model, pages, kept):
    batch, counts = model.batch(1, pages * PAGE), []
    for seed in range(4):
        number = batch.add(tokens(PAGE + 1, seed))
        finish(batch)
        batch.remove(number)
        counts.append(batch.state_bytes // ENTRY)
    assert counts == kept
    assert batch.waiting(batch.add(tokens(PAGE + 1, 3))) == 1


def test_computed_tokens_can_only_be_forgotten_together(model):
    batch, alone = model.batch(2, 8 * PAGE), Alone(model)
    number = batch.add(tokens(300))
    finish(batch)
    with pytest.raises(
        InputError, match="cannot be truncated to 299 tokens: each run replaces its states; expected 300"
    ):
        batch.truncate(number, 299)
    alone.run(number, tokens(300))
    batch.extend(number, tokens(5, 1), last=None)
    batch.truncate(number, 302)
    check(batch.step(), {number: alone.run(number, tokens(5, 1)[:2], None)})
    batch.truncate(number, 0)
    batch.extend(number, tokens(9))
    check(batch.step(), {number: model.session().run(tokens(9))[0]})


def test_a_sequence_has_one_entry_while_it_runs_and_pauses(model):
    batch = model.batch(3, 8 * PAGE)
    numbers = [batch.add(tokens(3, seed)) for seed in range(3)]
    for stepping in (numbers, numbers[:1], numbers[1:]):
        batch.step()
        assert batch.state_bytes == 3 * (batch.page_bytes + ENTRY)
        for number in stepping:
            batch.extend(number, tokens(1))
    batch.remove(numbers[0])
    assert batch.state_bytes == 2 * (batch.page_bytes + ENTRY)
    batch.truncate(numbers[1], 0)
    assert batch.state_bytes == batch.page_bytes + ENTRY


def test_a_run_that_fails_leaves_the_states_as_they_were(model, monkeypatch):
    batch, expected = model.batch(2, 8 * PAGE), Alone(model)
    number = batch.add(tokens(5))
    check(batch.step(), {number: expected.run(number, tokens(5))})
    batch.extend(number, tokens(2, 1))
    entries = batch.state_bytes
    with monkeypatch.context() as patch:
        run = BatchProgram.run

        def fails(*arguments: object) -> None:
            run(*arguments)
            raise MemoryError

        patch.setattr(BatchProgram, "run", fails)
        for _ in range(9):  # more often than there are entries
            with pytest.raises(MemoryError):
                batch.step()
    assert batch.state_bytes == entries
    check(batch.step(), {number: expected.run(number, tokens(2, 1))})


def test_states_that_no_memory_has_are_refused(model):
    with pytest.raises(MoecError, match=f"there is no memory for state 'conv' .* of {1 << 55} sequences"):
        model.batch(1 << 55, PAGE)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "kind", "passes"),
    [
        ("qwen3next", "F32", "O2"),
        ("qwen35moe", "Q8_0", "O2,cast-states{dtype=fp16}"),
        ("nemotron_h_moe", "F32", "O2,cast-states{dtype=int8}"),
        ("lfm2moe", "Q4_0", "O2"),
    ],
)
def test_files_of_llama_cpp_have_the_bits_of_sessions(name, kind, passes, tmp_path):
    path = tiny_models.write_model(name, tmp_path / "model.gguf", kind)
    model = moec.compile(path, batches=True, passes=passes)
    steps_of_a_batch(model, Alone(model), tiny_models.VOCABULARY)
