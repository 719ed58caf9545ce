"""The scheduler: one thread owns the batch, lets requests in as there is room, and hands out text as it comes."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from moec.common.errors import MoecError, one_line
from moec.runtime.held import PAGE
from moec.runtime.model import CompiledModel
from moec.runtime.prompt_row import Generation, PromptRow, TextWriter
from moec.runtime.sampling import Sampling
from moec.runtime.text_codec import TextCodec
from moec.runtime.token_selection import TokenSelection
from moec.serving.limits import ServerLimits
from moec.serving.metrics import Metrics, ServerLoad
from moec.serving.refusals import RequestError

Event = str | Generation | RequestError
"""New text; the result, or the reason why there is none, which is the last event."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request that is being answered. ``on_event`` is called on the scheduler's thread. ``row`` is None until the
    request has a prompt (:meth:`Scheduler.start`), ``number`` until it has a sequence. ``pages``: those kept for it.
    ``last_time``: of its last token, or of the request until it ``has_begun``. ``is_over``: nobody waits for
    events any more."""

    on_event: Callable[[Event], None]
    deadline: float
    last_time: float
    row: PromptRow | None = None
    selection: TokenSelection | None = None
    pages: int = 0
    number: int | None = None
    has_begun: bool = False
    is_over: bool = False


class Scheduler:
    """Requests that share the steps of one :class:`moec.Batch`.

    A request waits until a sequence and the pages of its longest text are free; requests are let in as they came, so
    that a long one is not overtaken for ever. Steps serve sequences in turn. A text does not depend on its neighbours.
    """

    def __init__(self, model: CompiledModel, codec: TextCodec, limits: ServerLimits, metrics: Metrics) -> None:
        """Raises UnsupportedError for a model that was compiled without batches."""
        self._batch = model.batch(limits.sequences, limits.tokens)
        self._codec, self._limits, self._metrics = codec, limits, metrics
        self._changed = threading.Condition()
        self._open = 0
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._running: list[Ticket] = []
        self._stops_at: float | None = None
        self._thread = threading.Thread(target=self._work, name="moec-scheduler", daemon=True)
        self._thread.start()

    @property
    def is_stopping(self) -> bool:
        """Whether it takes no further requests."""
        return self._stops_at is not None

    @property
    def load(self) -> ServerLoad:
        """Use of the server now."""
        running, free = len(self._running), self._batch.free_pages
        return ServerLoad(max(0, self._open - running), running, self._batch.pages - free, free)

    def enter(self, on_event: Callable[[Event], None]) -> Ticket:
        """Take a place, which :meth:`leave` gives back. Raises RequestError where all are taken, and at the end."""
        with self._changed:
            if self.is_stopping:
                raise _stopping()
            if self._open >= self._limits.sequences + self._limits.waiting:
                raise RequestError(429, "the server answers as many requests as it can; try again later")
            self._open += 1
            now = time.monotonic()
            return Ticket(on_event, now + self._limits.seconds, now)

    def start(
        self, ticket: Ticket, prompt: list[int], sampling: Sampling, new_tokens: int | None, stops: Sequence[str]
    ) -> None:
        """Continue a prompt as soon as there is room. ``new_tokens``: None for as many as there may be. Raises
        RequestError for more tokens than the server holds, and at the end."""
        most = self._most_new(len(prompt), new_tokens)
        writer = TextWriter(self._codec, prompt, stops, 0, lambda place, text: ticket.on_event(text))
        ticket.row = PromptRow(0, prompt, most, writer)
        ticket.selection = TokenSelection(sampling, [prompt], [0])
        ticket.pages = -(-(len(prompt) + most) // PAGE)
        with self._changed:
            if self.is_stopping:
                raise _stopping()
            self._waiting.append(ticket)
            self._changed.notify()

    def leave(self, ticket: Ticket) -> None:
        """Give back the place of a request, which is cancelled if it is not answered yet."""
        with self._changed:
            self._open -= 1
            ticket.is_over = True
            self._changed.notify()

    def stop(self) -> None:
        """Take no further requests, refuse those that wait, and let the others go on for ``grace_seconds``. Signal
        handlers may call it: it takes no lock."""
        if self._stops_at is None:
            self._stops_at = time.monotonic() + self._limits.grace_seconds

    def _most_new(self, prompt: int, asked: int | None) -> int:
        limit = self._limits.new_tokens
        if asked is not None and asked > limit:
            raise RequestError(400, f"max_tokens is {asked}; this server allows {limit}", parameter="max_tokens")
        if not self._batch.can_hold(prompt + 1):
            raise RequestError(
                400,
                f"the prompt has {prompt} tokens, and this server holds {self._batch.pages * PAGE} at most, the model "
                "perhaps fewer; shorten it",
                code="context_length_exceeded",
            )
        room = self._batch.pages * PAGE - prompt
        if asked is not None and asked > room:
            raise RequestError(
                400, f"max_tokens is {asked}; after {prompt} of the prompt {room} are left", parameter="max_tokens"
            )
        return min(limit if asked is None else asked, room)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running):
                    self._changed.wait()
                self._drop()
                self._let_in()
            self._step()

    def _drop(self) -> None:
        """End requests that nobody waits for, or that took too long, and those that a stop leaves no time."""
        now = time.monotonic()
        for ticket in [*self._running, *self._waiting]:
            if ticket.is_over:
                self._end(ticket, None)
            elif now >= ticket.deadline:
                self._end(ticket, RequestError(504, f"the text took longer than {self._limits.seconds} s"))
            elif self._stops_at is not None and (ticket.number is None or now >= self._stops_at):
                self._end(ticket, _stopping())

    def _let_in(self) -> None:
        while self._waiting and len(self._running) < self._limits.sequences:
            ticket = self._waiting[0]
            if sum(other.pages for other in self._running) + ticket.pages > self._batch.pages:
                return
            self._waiting.popleft()
            assert ticket.row is not None
            try:
                ticket.number = self._batch.add(ticket.row.give(len(ticket.row.pending)))
            except MoecError as error:
                ticket.on_event(RequestError(400, str(error), parameter="prompt"))
                ticket.is_over = True
            else:
                self._running.append(ticket)
                self._metrics.began(len(ticket.row.prompt))

    def _step(self) -> None:
        """Compute the next tokens of some sequences. A failure ends all, because nothing says which one caused it."""
        try:
            results = self._batch.step()
        except Exception as error:
            failure = RequestError(500, f"the model failed: {one_line(error)}")
            for ticket in list(self._running):
                self._end(ticket, failure)
            return
        for ticket in list(self._running):
            if ticket.number in results:
                self._take(ticket, results[ticket.number])

    def _take(self, ticket: Ticket, logits: np.ndarray) -> None:
        assert ticket.row is not None and ticket.selection is not None and ticket.number is not None
        row = ticket.row
        try:
            token = int(ticket.selection.choose(logits, [0])[0])
            row.take(token, not self._batch.can_hold(self._batch.length(ticket.number) + 1))
            if row.ended != "end":
                self._note_token(ticket)
            if row.ended is None:
                self._batch.extend(ticket.number, row.give(1))
        except Exception as error:
            self._end(ticket, RequestError(500, f"the text cannot go on: {one_line(error)}"))
        else:
            if row.ended is not None:
                self._end(ticket, row.generation(row.prompt))

    def _note_token(self, ticket: Ticket) -> None:
        now = time.monotonic()
        self._metrics.took_token(now - ticket.last_time, first=not ticket.has_begun)
        ticket.last_time, ticket.has_begun = now, True

    def _end(self, ticket: Ticket, event: Event | None) -> None:
        """Free what a request holds, and tell whoever waits for it."""
        if ticket.number is None:
            self._waiting.remove(ticket)
        else:
            self._running.remove(ticket)
            self._batch.remove(ticket.number)
        if event is not None and not ticket.is_over:
            ticket.on_event(event)


def _stopping() -> RequestError:
    return RequestError(503, "the server is stopping; try again later")
