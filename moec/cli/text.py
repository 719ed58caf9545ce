"""Commands of language models: ``moec generate`` writes text."""

from __future__ import annotations

import dataclasses
import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moec.cli.conversation import check_options, converse
from moec.cli.groups import with_groups
from moec.cli.options import Artifact, Json, LoadingOptions
from moec.cli.printing import print_result
from moec.common import draft_kinds
from moec.common.errors import MoecError
from moec.common.plain_files import read_text

if TYPE_CHECKING:
    from moec.runtime.model import CompiledModel
    from moec.runtime.prompt_row import Generation


class DraftKind(str, enum.Enum):
    """Sources of drafts."""

    NGRAM = draft_kinds.NGRAM
    MTP = draft_kinds.MTP


_STDIN = "-"
_LARGEST_PROMPT = 256 << 20
"""Bytes of a prompt's file."""


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """Prompts, and how chats begin."""

    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Continue this text; - reads it from stdin. Repeatable.")
    ] = None
    prompt_file: Annotated[
        list[Path] | None, typer.Option("--prompt-file", help="Read a prompt from this file. Repeatable.")
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the model's chat template.")] = False
    system: Annotated[str | None, typer.Option(help="Begin chats with this system message.")] = None

    def prompts(self) -> list[str]:
        """Collect all prompts. A line end at the end of a file or of standard input is not part of the prompt. Raises
        MoecError without any, and for one that cannot be read."""
        texts = [_read_stdin() if text == _STDIN else text for text in self.prompt or ()]
        texts += [read_text(path, _LARGEST_PROMPT).removesuffix("\n") for path in self.prompt_file or ()]
        if not texts:
            raise MoecError(
                "there is no prompt; give --prompt TEXT, --prompt - for standard input, or --prompt-file FILE"
            )
        return texts


@dataclasses.dataclass(frozen=True)
class EndOptions:
    """Ends of texts."""

    max_new_tokens: Annotated[int, typer.Option(min=1, help="Generate at most this many tokens.")] = 128
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop when prompt and text together have this many tokens.")
    ] = None
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End the text at this string. Repeatable.")] = None

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of :func:`moec.generate`."""
        return {**vars(self), "stop": self.stop or []}


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options of selecting tokens: those of :class:`moec.runtime.sampling.Sampling`."""

    temperature: Annotated[
        float, typer.Option(help="Draw tokens with this temperature; 0 always takes the most likely one.")
    ] = 0.0
    top_k: Annotated[int, typer.Option(help="Draw from this many most likely tokens; 0 draws from all.")] = 0
    top_p: Annotated[float, typer.Option(help="Draw from the most likely tokens that add up to this probability.")] = (
        1.0
    )
    min_p: Annotated[float, typer.Option(help="Draw from tokens at least this share as likely as the likeliest.")] = 0.0
    repetition_penalty: Annotated[float, typer.Option(help="Make earlier tokens less likely; 1 has no effect.")] = 1.0
    seed: Annotated[int, typer.Option(help="Seed the random draws. The same seed gives the same text.")] = 0


@dataclasses.dataclass(frozen=True)
class DraftOptions:
    """Sources of drafts."""

    drafts: Annotated[
        DraftKind | None,
        typer.Option(
            help="Guess several tokens of each step: ngram takes what followed the last tokens before, which is faster "
            "where the text repeats the prompt or itself; mtp the model's own layer (moec compile --drafts mtp). The "
            "text is the same."
        ),
    ] = None
    draft_model: Annotated[
        Path | None,
        typer.Option(help="Artifact of a smaller model with the same tokens, which drafts. Not with --drafts."),
    ] = None

    def source(self, threads: int | None) -> str | CompiledModel | None:
        """Argument ``drafts`` of :func:`moec.generate`. Raises MoecError for two sources."""
        from moec.artifacts.loading import load

        if self.draft_model is None:
            return self.drafts and self.drafts.value
        if self.drafts is not None:
            raise MoecError(f"--drafts {self.drafts.value} and --draft-model both draft; give one of them")
        return load(self.draft_model, threads=threads)


@with_groups
def generate(
    context: typer.Context,
    artifact: Artifact,
    *,
    asked: PromptOptions,
    ending: EndOptions,
    sampling: SamplingOptions,
    batch: Annotated[
        int,
        typer.Option(min=1, help="Run this many prompts side by side. Faster, but only the first text is streamed."),
    ] = 1,
    drafting: DraftOptions,
    prompt_cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep what was computed of the prompt, or of a conversation's first message, in this file; one that "
            "begins alike continues it."
        ),
    ] = None,
    loading: LoadingOptions,
    as_json: Json = False,
) -> None:
    """Generate text from prompts and stream it to standard output.

    On a terminal, stderr gets the tokens per second. There, --chat without a prompt is a conversation.
    """
    from moec.distributed.generation import generate as generated
    from moec.distributed.start import loaded

    if _is_conversation(asked, as_json):
        check_options(context.params)
        with loaded(artifact, **loading.keywords()) as model:
            _converse(model, asked.system, ending, sampling, prompt_cache)
        return
    prompts = asked.prompts()
    options: dict[str, Any] = {**vars(sampling), **ending.keywords(), "chat": asked.chat, "system": asked.system}
    with loaded(artifact, **loading.keywords()) as model:
        shown = None if as_json else _Shown(len(prompts), side_by_side=batch > 1)
        drafts = drafting.source(loading.threads)
        results = generated(
            model, prompts, batch=batch, drafts=drafts, prompt_cache=prompt_cache, on_text=shown, **options
        )
        if shown is None:
            print_result([dataclasses.asdict(result) for result in results], True, ())
        else:
            shown.end()
        _print_notes(model, results)


def _is_conversation(asked: PromptOptions, as_json: bool) -> bool:
    from moec.distributed.start import is_started_on_ranks

    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not is_started_on_ranks()
    return asked.chat and is_terminal and not (asked.prompt or asked.prompt_file or as_json)


def _converse(
    model: CompiledModel, system: str | None, ending: EndOptions, sampling: SamplingOptions, cache: Path | None
) -> None:
    from moec.runtime.sampling import Sampling
    from moec.runtime.talk import Talk

    ends = ending.keywords()
    stops = ends.pop("stop")
    converse(Talk(model, Sampling(**vars(sampling)), system=system, stops=stops, prompt_cache=cache, **ends))


class _Shown:
    """Writer of texts to standard output, each on lines of its own, on a terminal with headings between several. Texts
    that are generated together wait for :meth:`end`, except the first."""

    def __init__(self, count: int, side_by_side: bool = False) -> None:
        self._count, self._next, self._waits = count, 0, side_by_side
        self._waiting: dict[int, str] = {}

    def __call__(self, place: int, text: str) -> None:
        if self._waits and place > 0:
            self._waiting[place] = self._waiting.get(place, "") + text
            return
        self._begin(place)
        print(text, end="", flush=True)

    def end(self) -> None:
        self._waits = False
        for place in sorted(self._waiting):
            self(place, self._waiting[place])
        self._begin(self._count - 1)
        print(flush=True)

    def _begin(self, place: int) -> None:
        while self._next <= place:
            if self._next:
                print(flush=True)
            self._next += 1
            if self._count > 1 and sys.stderr.isatty():
                print(f"prompt {self._next} of {self._count}", file=sys.stderr)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MoecError(f"standard input: cannot be read as text: {reason}") from error


def _print_notes(model: CompiledModel, generations: list[Generation]) -> None:
    if not model.states:
        note = "the model keeps no states, so that each token runs all before it again; compile it with its cache"
        print(f"note: {note}", file=sys.stderr)
    if sys.stderr.isatty():
        print(_speed(generations), file=sys.stderr)


def _speed(generations: list[Generation]) -> str:
    prompt, new = sum(text.prompt_tokens for text in generations), sum(len(text.ids) for text in generations)
    prefill = sum(text.prefill_seconds for text in generations)
    decode = sum(text.decode_seconds for text in generations)
    later = sum(max(len(text.ids) - 1, 0) for text in generations)
    ended = ", ".join(dict.fromkeys(text.ended for text in generations))
    parts = [f"prompt {prompt} tokens, {prompt / prefill:.1f} tokens/s"]
    parts += [f"text {new} tokens, {later / decode:.1f} tokens/s"] if later else []
    return "\n".join([f"{'; '.join(parts)}; ended by {ended}", *_drafts(generations)])


def _drafts(generations: list[Generation]) -> list[str]:
    """Lines on the drafts of each text."""
    lines = []
    for figures in (text.drafts for text in generations if text.drafts is not None):
        steps = ", ".join(f"{count} of {size} ({1e3 * seconds:.1f} ms)" for size, count, seconds in figures.steps)
        lines.append(f"drafts: {figures.accepted} of {figures.drafted} accepted; steps by their tokens: {steps}")
    return lines
