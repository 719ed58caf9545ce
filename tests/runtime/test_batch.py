"""Batches: sequences of different lengths together, against sessions of one sequence each, bit for bit."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

import moec
from moec.common.errors import InputError, UnsupportedError
from moec.runtime.held import PAGE
from moec.runtime.page_pool import BLOCK

from ..frontend.gguf import tiny_models
from .tiny_decoder import VOCABULARY, WINDOW, tiny_decoder


@pytest.fixture(scope="module")
def model() -> moec.CompiledModel:
    return moec.compile(tiny_decoder(), batches=True)


class Alone:
    """Sessions of one sequence each that run the parts that a batch makes of its tokens."""

    def __init__(self, model: moec.CompiledModel) -> None:
        self._model, self.sessions = model, dict[int, moec.Session]()

    def run(self, number: int, ids: np.ndarray, last: int | None = 1) -> np.ndarray:
        session = self.sessions.setdefault(number, self._model.session())
        ends = [session.length, *range(PAGE * (session.length // PAGE + 1), session.length + len(ids), PAGE)]
        cuts = [end - session.length for end in (*ends, session.length + len(ids))]
        logits = np.concatenate([session.run(ids[start:end], last=None)[0] for start, end in itertools.pairwise(cuts)])
        return logits if last is None else logits[len(logits) - min(last, len(logits)) :]


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count)


def finish(batch: moec.Batch) -> dict[int, np.ndarray]:
    results: dict[int, np.ndarray] = {}
    while any(batch.waiting(number) for number in batch.sequences):
        results |= batch.step()
    return results


def check(actual: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for number, logits in expected.items():
        np.testing.assert_array_equal(actual[number], logits)


def test_sequences_of_different_lengths_have_the_bits_of_sessions(model):
    batch, alone = model.batch(8, 4096), Alone(model)
    prompts = {batch.add(tokens(count, count)): tokens(count, count) for count in (5, 300, 1, 33, 2, 256, 9, 600)}
    check(finish(batch), {number: alone.run(number, ids) for number, ids in prompts.items()})
    for seed in range(3):
        new = {number: tokens(1 + 3 * (number == 2), seed) for number in batch.sequences if number != seed}
        for number, ids in new.items():
            batch.extend(number, ids, last=None)
        check(batch.step(), {number: alone.run(number, ids, None) for number, ids in new.items()})


def test_sequences_join_and_leave_and_prompts_run_beside_decoding(model):
    batch, alone = model.batch(3, 8 * PAGE), Alone(model)
    first, second = batch.add(tokens(3)), batch.add(tokens(4, 1))
    check(batch.step(), {first: alone.run(first, tokens(3)), second: alone.run(second, tokens(4, 1))})
    long = batch.add(tokens(700, 2))
    steps = 0
    while batch.waiting(long):
        batch.extend(first, tokens(1, steps))
        results = batch.step()
        np.testing.assert_array_equal(results[first], alone.run(first, tokens(1, steps)))
        steps += 1
    assert steps == 3
    np.testing.assert_array_equal(results[long], alone.run(long, tokens(700, 2)))
    batch.remove(second)
    joined = batch.add(tokens(2, 5))
    assert joined not in (first, second, long)
    batch.extend(long, tokens(1, 9))
    check(batch.step(), {long: alone.run(long, tokens(1, 9)), joined: alone.run(joined, tokens(2, 5))})


def test_a_prompt_waits_for_no_step_for_ever(model):
    batch = model.batch(5, 8 * PAGE)
    others = [batch.add(tokens(3, seed)) for seed in range(4)]
    batch.step()
    prompt = batch.add(tokens(2 * PAGE))
    for _ in range(2):
        for number in others:
            batch.extend(number, tokens(1))
        assert set(batch.step()) >= set(others)
    assert not batch.waiting(prompt)


def test_forks_share_pages_until_they_write(model):
    batch, alone = model.batch(4, 16 * PAGE), Alone(model)
    system = batch.add(tokens(600))
    expected = alone.run(system, tokens(600))
    np.testing.assert_array_equal(finish(batch)[system], expected)
    used = batch.pages - batch.free_pages
    forks = [batch.fork(system) for _ in range(3)]
    assert batch.pages - batch.free_pages == used == 3
    for seed, number in enumerate(forks):
        alone.sessions[number] = alone.sessions[system].fork()
        batch.extend(number, tokens(2, seed))
    check(batch.step(), {number: alone.run(number, tokens(2, seed)) for seed, number in enumerate(forks)})
    assert batch.pages - batch.free_pages == used + len(forks)
    batch.extend(system, tokens(1))
    check(batch.step(), {system: alone.run(system, tokens(1))})
    assert batch.pages - batch.free_pages == used + len(forks)
    for number in batch.sequences:
        batch.remove(number)
    assert (batch.free_pages, batch.state_bytes) == (batch.pages, 0)


def test_a_prompt_that_another_begins_with_is_computed_once(model):
    batch, alone = model.batch(4, 16 * PAGE), Alone(model)
    system = tokens(2 * PAGE + 3 * BLOCK)
    first = batch.add(np.append(system, 3))
    finish(batch)
    prompts = [
        np.append(system, tokens(9, 1)),
        np.append(system[:PAGE], system[:PAGE]),
        np.append(tokens(PAGE, 9), system),
    ]
    numbers = [batch.add(ids) for ids in prompts]
    assert [batch.waiting(number) for number in numbers] == [9, PAGE, 3 * PAGE + 3 * BLOCK]
    check(finish(batch), {number: alone.run(number, ids) for number, ids in zip(numbers, prompts, strict=True)})
    assert batch.pages - batch.free_pages == 3 + 1 + 1 + 4
    batch.extend(first, tokens(1))  # in a page of its own, since another has taken the beginning of that one
    alone.run(first, np.append(system, 3))
    check(finish(batch), {first: alone.run(first, tokens(1))})


def test_a_prompt_is_found_until_its_pages_are_taken_for_other_tokens():
    model = moec.compile(tiny_decoder({f"window = {{{WINDOW}}}": "window = {100000}"}), batches=True)
    batch, alone = model.batch(2, 4 * PAGE), Alone(model)
    prompt = tokens(2 * PAGE)
    first = batch.add(prompt)
    finish(batch)
    batch.remove(first)
    assert (batch.free_pages, batch.state_bytes) == (4, 0)
    longer = np.append(prompt, tokens(PAGE, 1))
    second = batch.add(longer)
    assert batch.waiting(second) == PAGE
    check(finish(batch), {second: alone.run(second, longer)})
    batch.remove(second)
    other = batch.add(tokens(3 * PAGE, 2))  # takes the page without tokens, then the last two of the prompt
    finish(batch)
    batch.remove(other)
    again = batch.add(longer)
    assert batch.waiting(again) == 2 * PAGE
    check(finish(batch), {again: alone.run(second + 1, longer)})


@pytest.mark.parametrize(
    ("earlier", "count", "waiting"),
    [
        (40, 41, 9),  # two blocks of the earlier prompt
        (40, 40, 24),  # 8 tokens would be computed by the kernels of steps
        (8, 40, 40),  # the earlier prompt was
        (PAGE + 8, PAGE + 40, 40),
        (PAGE + 40, PAGE + 8, 8),  # tokens after a page, which steps compute
        (PAGE + 40, PAGE + 1, 1),
        (PAGE + 40, PAGE, BLOCK),
        (PAGE, PAGE, BLOCK),
    ],
)
def test_a_token_is_computed_by_the_same_kernels_behind_a_shared_beginning(model, earlier, count, waiting):
    batch, prompt = model.batch(2, 4 * PAGE), tokens(2 * PAGE)
    batch.add(prompt[:earlier])
    finish(batch)
    number = batch.add(prompt[:count])
    assert batch.waiting(number) == waiting
    check(finish(batch), {number: Alone(model).run(number, prompt[:count])})


def test_tokens_of_steps_or_with_wanted_logits_are_computed_again(model):
    batch = model.batch(7, 16 * PAGE)
    for cut, waiting in ((PAGE - 9, 1), (PAGE - 8, 17), (5, PAGE + 1)):  # both parts are of many tokens, or one of few
        prompt = tokens(PAGE, cut)
        first = batch.add(prompt[:cut])
        batch.step()
        batch.extend(first, prompt[cut:])
        finish(batch)
        assert batch.waiting(batch.add(np.append(prompt, 1))) == waiting
    assert batch.waiting(batch.add(np.append(tokens(PAGE, PAGE - 9), 1), last=2)) == 17
    finish(batch)


def test_a_page_that_is_written_again_is_found_no_more(model):
    batch = model.batch(3, 8 * PAGE)
    first = batch.add(tokens(PAGE))
    batch.step()
    batch.truncate(first, PAGE - 1)
    second = batch.add(tokens(PAGE + 1))
    assert batch.waiting(second) == 1
    batch.remove(second)
    batch.extend(first, [0])
    batch.step()
    assert batch.waiting(batch.add(tokens(PAGE + 1))) == 1 + BLOCK


def test_other_tokens_in_place_of_forgotten_ones_are_found_by_themselves(model):
    """Also where a fork goes on with others."""
    batch, alone = model.batch(6, 8 * PAGE), Alone(model)
    prompt, other = tokens(80), np.append(tokens(40), tokens(40, 1))
    first = batch.add(prompt)
    batch.step()
    fork = batch.fork(first)
    batch.truncate(first, 40)
    batch.extend(first, other[40:])
    batch.extend(fork, tokens(40, 2))
    finish(batch)
    batch.remove(first)
    prompts = [np.append(ids, tokens(9, 3)) for ids in (other, prompt, np.append(prompt, tokens(40, 2)))]
    numbers = [batch.add(ids) for ids in prompts]
    assert [batch.waiting(number) for number in numbers] == [9, 9, 17]
    check(finish(batch), {number: alone.run(number, ids) for number, ids in zip(numbers, prompts, strict=True)})


def test_truncated_tokens_are_forgotten(model):
    batch, alone = model.batch(2, 8 * PAGE), Alone(model)
    number = batch.add(tokens(520))
    finish(batch)
    batch.truncate(number, 330)
    assert (batch.length(number), batch.pages - batch.free_pages) == (330, 2)
    alone.run(number, tokens(520))
    alone.sessions[number].truncate(330)
    batch.extend(number, tokens(4, 1), last=2)
    check(batch.step(), {number: alone.run(number, tokens(4, 1), 2)})
    batch.extend(number, tokens(5, 2), last=3)
    batch.truncate(number, 336)  # a draft of five, of which the last three are dropped before they are computed
    assert batch.step()[number].shape == (0, VOCABULARY)
    assert batch.step() == {}


def test_a_sequence_goes_back_as_far_as_the_keys_of_a_window_are_there(model):
    batch, alone = model.batch(2, 8 * PAGE), Alone(model)
    number = batch.add(tokens(520))
    finish(batch)
    least = PAGE + WINDOW - 1
    with pytest.raises(InputError, match=f"cannot be truncated to {least - 1} tokens.*; expected {least} tokens or mo"):
        batch.truncate(number, least - 1)
    assert batch.length(number) == 520
    batch.truncate(number, least)
    alone.run(number, tokens(520))
    alone.sessions[number].truncate(least)
    batch.extend(number, tokens(300, 1), last=None)
    check(finish(batch), {number: alone.run(number, tokens(300, 1), None)})
    batch.truncate(number, 0)
    batch.extend(number, tokens(9))
    check(batch.step(), {number: model.session().run(tokens(9))[0]})


def test_layers_with_a_window_need_few_pages(model):
    """One of two layers has a window: of 12 pages of its tokens it keeps that of the last part and the one before."""
    batch, alone = model.batch(2, 24 * PAGE), Alone(model)
    number = batch.add(tokens(11 * PAGE + 3))
    expected = alone.run(number, tokens(11 * PAGE + 3))
    check(finish(batch), {number: expected})
    layer = 2 * 2 * PAGE * 8 * 4
    assert batch.page_bytes == 2 * layer and batch.state_bytes == (12 + 2) * layer
    for seed in range(3):
        batch.extend(number, tokens(1, seed))
        check(batch.step(), {number: alone.run(number, tokens(1, seed))})
    forks = [batch.fork(number)]
    alone.sessions[forks[0]] = alone.sessions[number].fork()
    for each in (number, *forks):
        batch.extend(each, tokens(2 * PAGE, each), last=3)
    check(finish(batch), {each: alone.run(each, tokens(2 * PAGE, each), 3) for each in (number, *forks)})
    for each in (number, *forks):
        batch.remove(each)
    assert batch.state_bytes == 0


def test_a_page_before_a_window_is_found_until_it_is_taken_for_other_tokens(model):
    batch, prompt = model.batch(2, 24 * PAGE), tokens(5 * PAGE)
    batch.add(prompt)
    finish(batch)
    again = batch.add(prompt[: 3 * PAGE])
    assert batch.waiting(again) == BLOCK
    batch.remove(again)
    other = batch.add(tokens(14 * PAGE, 1))
    finish(batch)
    batch.remove(other)
    again = batch.add(prompt[: 3 * PAGE])
    assert batch.waiting(again) == 3 * PAGE
    np.testing.assert_array_equal(finish(batch)[again], Alone(model).run(again, prompt[: 3 * PAGE]))


def test_a_batch_that_is_full_changes_nothing(model):
    batch = model.batch(2, 2 * PAGE)
    first, second = batch.add(tokens(PAGE)), batch.add(tokens(PAGE, 1))
    results = finish(batch)
    with pytest.raises(InputError, match="the batch has 2 sequences, its max_sequences"):
        batch.add(tokens(1))
    with pytest.raises(InputError, match="the batch has 2 sequences"):
        batch.fork(first)
    batch.extend(first, tokens(1))
    for _ in range(2):
        with pytest.raises(InputError, match="the batch is full: all of its 2 pages of 256 tokens are in use"):
            batch.step()
    batch.remove(second)
    assert set(batch.step()) == {first}
    assert set(results) == {first, second}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda batch: batch.remove(7), "the batch has no sequence 7"),
        (lambda batch: batch.extend(True, [1]), "no sequence True"),
        (lambda batch: batch.truncate(0, 5), "truncate sequence 0 to 5 .*; expected a whole number from 0 to 3"),
        (lambda batch: batch.extend(0, [1]), "sequence 0 has 3 tokens that wait"),
        (lambda batch: batch.add([]), "token ids are"),
        (lambda batch: batch.add([[1], [2, 3]]), "token ids are"),
        (lambda batch: batch.add([1.5]), "token ids are"),
        (lambda batch: batch.add([VOCABULARY]), "token id 50 is outside of the vocabulary; expected 0 to 49"),
        (lambda batch: batch.add([-1]), "token id -1"),
        (lambda batch: batch.add([1], last=-1), "last is -1"),
        (lambda batch: batch.add(tokens(5 * PAGE)), "the sequence would have 1280 tokens, and the batch has 4 pages"),
    ],
)
def test_what_is_refused_leaves_the_batch_as_it_was(model, act, message):
    batch = model.batch(3, 4 * PAGE)
    number = batch.add(tokens(3))
    with pytest.raises(InputError, match=message):
        act(batch)
    check(batch.step(), {number: Alone(model).run(number, tokens(3))})
    assert batch.sequences == [number]


@pytest.mark.parametrize("options", [(0, 5), (2, 0), (2, True), (2, 5, 255), (2, 5, "many")])
def test_numbers_of_a_batch_are_checked(model, options):
    with pytest.raises(InputError, match="expected"):
        model.batch(*options[:2], step_tokens=options[2] if len(options) > 2 else None)


def test_one_thread_at_a_time(model):
    batch = model.batch(2, PAGE)
    batch.add(tokens(1))
    errors: list[str] = []

    def intrude() -> None:
        with pytest.raises(InputError) as error:
            batch.add(tokens(1))
        errors.append(str(error.value))

    with batch._used():
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert errors == ["the batch is being used by another thread; let one thread use it"]


def test_a_model_that_was_compiled_without_has_no_batches(model, tmp_path, monkeypatch):
    model.save(tmp_path / "model.moec")
    model = moec.load(tmp_path / "model.moec")
    monkeypatch.setattr(model.artifact.manifest, "batch", None)
    with pytest.raises(UnsupportedError, match="has no program for batches of sequences; compile it with batches"):
        model.batch(2, 100)


def steps_of_a_batch(model: moec.CompiledModel, alone: Alone, vocabulary: int) -> None:
    """Check prompts of several lengths, a fork, and steps of one token against sessions."""
    random = np.random.default_rng(0)
    batch = model.batch(5, 6 * PAGE)
    prompts = {batch.add(ids): ids for ids in (random.integers(0, vocabulary, count) for count in (5, 60, 1, 33))}
    check(finish(batch), {number: alone.run(number, ids) for number, ids in prompts.items()})
    fork = batch.fork(1)
    alone.sessions[fork] = alone.sessions[1].fork()
    for _ in range(2):
        new = {number: random.integers(0, vocabulary, 1) for number in batch.sequences}
        for number, ids in new.items():
            batch.extend(number, ids)
        check(batch.step(), {number: alone.run(number, ids) for number, ids in new.items()})


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt-oss", "F32"), ("gemma3", "F32"), ("qwen3moe", "Q8_0"), ("granitemoe", "Q4_0"), ("deepseek2", "Q8_0")],
)
def test_files_of_llama_cpp_have_the_bits_of_sessions(name, kind, tmp_path):
    model = moec.compile(tiny_models.write_model(name, tmp_path / "model.gguf", kind), batches=True)
    steps_of_a_batch(model, Alone(model), tiny_models.VOCABULARY)


@pytest.mark.nightly
def test_sums_of_bfloat16_do_not_depend_on_neighbours():
    model = moec.compile(tiny_decoder(), batches=True, experts="bf16")

    def bits(neighbours: int) -> np.ndarray:
        batch = model.batch(8, 8 * PAGE)
        first = batch.add(tokens(7))
        for seed in range(neighbours):
            batch.add(tokens(20, seed))
        return batch.step()[first]

    np.testing.assert_array_equal(bits(0), bits(7))
