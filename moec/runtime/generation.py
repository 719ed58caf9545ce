"""Text generation with a compiled language model."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moec.common.arguments import check_choice, check_kind, check_optional_text, check_path, known_options, shown
from moec.common.draft_kinds import MTP, NGRAM
from moec.common.errors import InputError, MoecError, RoomError, one_line, reporting
from moec.runtime.draft_model import DraftModel, check_same_tokens
from moec.runtime.drafting import DraftedText
from moec.runtime.model import CompiledModel
from moec.runtime.mtp_drafts import MtpDrafts
from moec.runtime.ngrams import Ngrams
from moec.runtime.prompt_cache import PromptCache
from moec.runtime.prompt_row import Generation, OnText, PromptRow, TextWriter
from moec.runtime.prompts import Prompt, encoded_prompts, prompts_of
from moec.runtime.sampling import Sampling
from moec.runtime.session import Session
from moec.runtime.session_checks import check_drafts
from moec.runtime.text_codec import TextCodec
from moec.runtime.token_selection import TokenSelection


@reporting("generating")
@known_options
def generate(
    model: CompiledModel,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    max_tokens: int | None = None,
    chat: bool = False,
    system: str | None = None,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    batch: int = 8,
    on_text: OnText | None = None,
    places: Sequence[int] | None = None,
    drafts: str | CompiledModel | None = None,
    prompt_cache: str | os.PathLike[str] | None = None,
) -> list[Generation]:
    """Continue one prompt or several. Returns one result per prompt, in their order.

    Raises MoecError for a model without tokenizer (token ids need none), a missing package, invalid options, or a
    prompt without tokens; InputError for a model that is no language model, a prompt longer than the session, or drafts
    for a model with a state that cannot step back.

    prompts
        A prompt is a text, token ids (a list, or an array [tokens]; an array [prompts, tokens] is several), or a
        conversation: a list of messages such as ``{"role": "user", "content": "Hello"}``.
    max_new_tokens, max_tokens
        The most tokens of a text, and of prompt and text together.
    chat
        Whether texts are a user's messages, which go through the model's chat template as conversations always do.
    system
        System message before every conversation.
    stop
        Strings that end the text, which does not include them.
    temperature, top_k, top_p, min_p, repetition_penalty, seed
        Options of :class:`moec.runtime.sampling.Sampling`. Random numbers depend only on ``seed`` and the index of the
        prompt.
    batch
        The most prompts that run together, so that each step reads the weights once for all of them. Kernels for more
        rows may add in another order, which changes the last bits of sums. Prompts run one by one with 1, with
        ``drafts``, with experts on disk, and if the model has a fixed batch.
    on_text
        Called with the index of a prompt and new text for it.
    places
        Indices of the prompts to continue; the result has one entry for each. None: all.
    drafts
        ``"ngram"`` drafts the tokens that followed earlier occurrences of the last tokens, ``"mtp"`` uses the model's
        MTP layer, if it was compiled with it, and a smaller model with the same tokens may draft, too. A step computes
        all drafts and keeps the right ones: the text is the same, and faster where many are right. Drafting stops where
        it loses time.
    prompt_cache
        File that keeps the states of a prompt. A later prompt of the same artifact that begins alike continues from
        them. For one prompt only; replaces only a file that moec wrote.
    """
    prompts, stops = prompts_of(prompts), _texts("stop", stop)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    _check_counts(max_new_tokens=max_new_tokens, batch=batch)
    check_optional_text(system=system)
    on_text = _checked(on_text)
    check_kind("model", model, CompiledModel, "what moec.load and moec.compile return")
    _check_source(drafts, model)
    codec = _codec(model, prompts, stops)
    encoded = encoded_prompts(codec, prompts, chat, system)
    rows = [
        PromptRow(place, ids, max_new_tokens, TextWriter(codec, ids, stops, place, on_text))
        for place, ids in enumerate(encoded)
        if places is None or place in places
    ]
    cache = None if prompt_cache is None else _prompt_cache(prompt_cache, model, rows)
    for group in _side_by_side(rows, 1 if drafts is not None else _most_rows(model, batch), max_new_tokens):
        session = model.session(max_tokens, len(group))
        is_kept = cache is None or begin_from(cache, session, group[0])
        if drafts is not None:
            _run_with_drafts(session, group[0], sampling, drafts, model)
        else:
            run_rows(session, group, sampling)
        if cache is not None and not is_kept:
            cache.keep(session, group[0].prompt)
    return [row.generation(prompts[row.place]) for row in rows]


def _prompt_cache(path: str | os.PathLike[str], model: CompiledModel, rows: Sequence[PromptRow]) -> PromptCache:
    check_path("prompt_cache", path)
    if len(rows) != 1:
        raise MoecError(f"prompt_cache keeps one prompt, and there are {len(rows)}; generate them one by one")
    return PromptCache(path, model.digest)


def begin_from(cache: PromptCache, session: Session, row: PromptRow) -> bool:
    """Let a row begin with the tokens of its prompt that the cache has, in a session without tokens. A session that
    cannot forget single tokens is kept on the way. Returns whether it is."""
    _check_prompt(session, row)
    start = time.perf_counter()
    kept, end = cache.begin(session, row.prompt)
    row.give(kept)
    if kept < end < len(row.prompt):
        _run_in_parts(session, np.array([row.give(end - kept)]), session.feed)
    is_kept = not session.can_truncate
    if is_kept and (place := cache.place(session, row.prompt)):
        if place > session.length:
            _run_in_parts(session, np.array([row.give(place - session.length)]), session.feed)
        cache.keep(session, row.prompt[:place])
    row.spend(time.perf_counter() - start)
    return is_kept


def _check_prompt(session: Session, row: PromptRow) -> None:
    if session.max_tokens is not None and len(row.prompt) > session.max_tokens:
        raise InputError(
            f"the prompt has {len(row.prompt)} tokens, and the session holds {session.max_tokens}; raise max_tokens"
        )


def _check_source(drafts: str | CompiledModel | None, model: CompiledModel) -> None:
    """Raise MoecError for drafts of no known kind, InputError for a model with other tokens."""
    if isinstance(drafts, CompiledModel):
        check_same_tokens(model, drafts)
    elif drafts is not None:
        check_choice("drafts", drafts, (NGRAM, MTP))
    if drafts == MTP:
        model.mtp_session(1)


def _checked(on_text: OnText | None) -> OnText | None:
    """Wrap the caller's function so that its errors are no defects of moec. Raises MoecError if it is no function."""
    if on_text is None:
        return None
    if not callable(on_text):
        raise MoecError(f"on_text is {shown(on_text)}; expected a function of an index and a text, or None")

    def checked(place: int, text: str) -> None:
        try:
            on_text(place, text)
        except MoecError:
            raise
        except Exception as error:  # a function of the user may raise anything
            raise MoecError(f"on_text failed with {type(error).__name__}: {one_line(error)}") from error

    return checked


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        check_kind(name, count, int, "a whole number from 1 up")
        if count < 1:
            raise MoecError(f"{name} is {count}; expected 1 or more")


def _codec(model: CompiledModel, prompts: Sequence[Prompt], stops: Sequence[str]) -> TextCodec | None:
    """Open the artifact's tokenizer. Returns None where it has none and no prompt is text."""
    is_text = any(isinstance(prompt, str) or (prompt and not isinstance(prompt[0], int)) for prompt in prompts)
    needed = is_text or stops or model.artifact.manifest.text is not None
    return TextCodec(model.artifact) if needed else None


def _texts(name: str, value: Any) -> list[str]:
    """Convert one string or several to a list. Raises MoecError for anything else."""
    texts = [value] if isinstance(value, str) else value
    check_kind(name, texts, (list, tuple), "a string, or a list of them")
    for text in texts:
        check_kind(f"one of {name}", text, str, "a string")
    if "" in texts:
        raise MoecError(f"{name} is {texts}; expected no empty string")
    return list(texts)


def _most_rows(model: CompiledModel, batch: int) -> int:
    """Number of prompts that run together. It is 1 where the model's inputs fix the batch, and where experts are read
    on demand, because memory may hold those of one token but not of several."""
    is_fixed = any(isinstance(spec.shape[0], int) for spec in model.inputs if spec.shape)
    return 1 if is_fixed or model.streamed is not None else batch


def _side_by_side(rows: Sequence[PromptRow], most: int, difference: int) -> Iterator[list[PromptRow]]:
    """Group rows into at most ``most``, whose prompts differ by at most ``difference`` tokens. Rows begin together, so
    the excess of a prompt over the shortest one runs in steps of one token."""
    group: list[PromptRow] = []
    for row in sorted(rows, key=lambda row: len(row.prompt)) if most > 1 else rows:
        if group and (len(group) == most or len(row.prompt) - len(group[0].prompt) > difference):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def run_rows(session: Session, rows: Sequence[PromptRow], sampling: Sampling) -> None:
    """Generate until all rows have ended. All rows have processed the same number of tokens, so that nothing is padded
    or masked: each step takes as many tokens of every row, from its prompt or the generated one, as all rows have."""
    _check_prompt(session, max(rows, key=lambda row: len(row.prompt)))
    selection = TokenSelection(sampling, [row.prompt for row in rows], [row.place for row in rows])
    while going := [row for row in rows if row.ended is None]:
        start = time.perf_counter()
        count = min(len(row.pending) for row in going)
        ids = np.zeros((len(rows), count), np.int64)  # rows that have ended get arbitrary tokens
        for place, row in enumerate(rows):
            if row.ended is None:
                ids[place] = row.give(count)
        ready = [place for place, row in enumerate(rows) if row.ended is None and not row.pending]
        tokens = _run_in_parts(session, ids, functools.partial(session.select, selection=selection, rows=ready))
        for place in ready:
            rows[place].take(int(tokens[place]), session.length == session.max_tokens)
        seconds = (time.perf_counter() - start) / len(rows)
        for row in going:
            row.spend(seconds)


def _run_with_drafts(
    session: Session, row: PromptRow, sampling: Sampling, drafts: str | CompiledModel, model: CompiledModel
) -> None:
    """Generate until the row has ended, in steps of several tokens."""
    check_drafts(session)
    _check_prompt(session, row)
    selection = TokenSelection(sampling, [row.prompt], [row.place])
    start = time.perf_counter()
    own = MtpDrafts(session, model.mtp_session(session.max_tokens)) if drafts == MTP else None
    ids = row.give(len(row.pending))
    logits = prefilled(session, ids) if own is None else _followed(session, ids, own)
    row.take(int(selection.choose(logits, [0])[0]), session.length == session.max_tokens)
    source = own or (Ngrams() if isinstance(drafts, str) else _draft_model(drafts, session, row))
    row.spend(time.perf_counter() - start)
    check_drafts(session)
    DraftedText(session, row, selection, source, None if own is None else own.run).finish()


def _followed(session: Session, ids: Sequence[int], drafts: MtpDrafts) -> np.ndarray:
    """Run a prompt as :func:`prefilled`, and the MTP layer behind each part."""

    def run(part: np.ndarray) -> np.ndarray:
        logits = drafts.run(part, last=1)
        drafts.follow()
        return logits[:, -1]

    return _run_in_parts(session, np.atleast_2d(ids), run, run)


def _draft_model(model: CompiledModel, other: Session, row: PromptRow) -> DraftModel:
    """Begin a session of a smaller model with the prompt."""
    session = model.session(other.max_tokens)
    check_drafts(session, to_remembered=False)
    prefilled(session, row.prompt)
    return DraftModel(session, other.vocabulary)


def prefilled(session: Session, ids: np.ndarray | Sequence[int]) -> np.ndarray:
    """Run tokens [batch, new] or [new], in parts where the model keeps states. Returns the logits [batch, vocabulary]
    of the last tokens.

    Parts become smaller where memory is insufficient for so many tokens. Raises InputError for more tokens than the
    session holds, RoomError where a part cannot become smaller.
    """
    return _run_in_parts(session, np.atleast_2d(ids), lambda part: session.run(part)[:, -1])


def _run_in_parts(
    session: Session,
    ids: np.ndarray,
    run_last: Callable[[np.ndarray], Any],
    run_part: Callable[[np.ndarray], Any] | None = None,
) -> Any:
    """Run tokens [batch, new] as :func:`prefilled`: the last part by ``run_last``, whose result it returns, others by
    ``run_part`` or else without logits."""
    run_part = run_part or session.feed
    length = ids.shape[1]
    room = session.max_tokens
    if room is not None and session.length + length > room:
        raise InputError(
            f"the prompt has {length} tokens, and the session holds {room - session.length} more; raise max_tokens"
        )
    step = session.part_tokens(length)
    done = 0
    while True:
        part = ids[:, done : done + step]
        try:
            if done + part.shape[1] >= length:
                return run_last(part)
            run_part(part)
        except RoomError:
            if not session.is_incremental or session.fixed_length or part.shape[1] == 1:
                raise
            step = part.shape[1] // 2
        else:
            done += part.shape[1]
