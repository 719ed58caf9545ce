"""The scheduler: a thread that owns the batch, starts requests when there is room, and passes on their text."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moec.common.errors import MoecError, one_line
from moec.runtime.held import PAGE
from moec.runtime.model import CompiledModel
from moec.runtime.text_codec import TextCodec
from moec.serving.limits import ServerLimits
from moec.serving.metrics import Metrics, ServerLoad
from moec.serving.refusals import RequestError
from moec.serving.running_text import Event, RunningText, TextJob


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request that is being answered. ``on_event`` is called on the thread of ``loop``. ``deadline``, ``arrival``:
    seconds of :func:`time.monotonic`. ``choices``: empty until the request has a prompt (:meth:`Scheduler.start`).
    ``pages``: number of pages reserved for it. ``is_over``: whether nobody waits for events any more."""

    loop: asyncio.AbstractEventLoop
    on_event: Callable[[Event], None]
    deadline: float
    arrival: float
    choices: list[RunningText] = dataclasses.field(default_factory=list)
    pages: int = 0
    is_over: bool = False

    @property
    def is_running(self) -> bool:
        """Whether it has a sequence."""
        return any(choice.number is not None for choice in self.choices)


class Scheduler:
    """Requests that share the steps of one :class:`moec.Batch`.

    A request waits until a sequence and the pages of its longest text are free. Requests start in the order of their
    arrival, so that short ones do not delay a long one for ever. Sequences take turns in steps, and no text depends on
    another. All events of a step go to the loop in one call, because each call wakes a thread that competes for the
    interpreter.
    """

    def __init__(self, model: CompiledModel, codec: TextCodec, limits: ServerLimits, metrics: Metrics) -> None:
        """Raises UnsupportedError for a model that was compiled without batches."""
        self._batch = model.batch(limits.sequences, limits.tokens)
        self._codec, self._limits, self._metrics = codec, limits, metrics
        self._changed = threading.Condition()
        self._open = 0
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._running: list[Ticket] = []
        self._news: list[tuple[Ticket, Event]] = []
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

    def enter(self, loop: asyncio.AbstractEventLoop, on_event: Callable[[Event], None]) -> Ticket:
        """Reserve a place until :meth:`leave`. ``on_event`` is called on the thread of ``loop``. Raises RequestError if
        no place is free or the server is stopping."""
        with self._changed:
            if self.is_stopping:
                raise _stopping()
            if self._open >= self._limits.sequences + self._limits.waiting:
                raise RequestError(429, "the server answers as many requests as it can; try again later")
            self._open += 1
            now = time.monotonic()
            return Ticket(loop, on_event, now + self._limits.seconds, now)

    def start(self, ticket: Ticket, job: TextJob) -> None:
        """Continue a prompt as soon as there is room. Raises RequestError for more texts or tokens than the server
        holds, and while it is stopping."""
        if job.count > self._limits.sequences:
            raise RequestError(
                400, f"n is {job.count}; this server computes {self._limits.sequences} texts together", parameter="n"
            )
        last = max((token for token, _ in job.sampling.logit_bias), default=0)
        if self._batch.vocabulary is not None and last >= self._batch.vocabulary:
            message = f"logit_bias has token {last}; the model has {self._batch.vocabulary} tokens"
            raise RequestError(400, message, parameter="logit_bias")
        prompt = len(job.prompt)
        most = self._most_new(prompt, job.new_tokens)
        ticket.pages = _pages(job, most)
        if ticket.pages > self._batch.pages:
            fitting = f"{job.count} texts after {prompt} tokens need {ticket.pages} pages of {PAGE} tokens"
            raise RequestError(400, f"{fitting}; this server has {self._batch.pages}", parameter="n")
        tell = functools.partial(self._tell, ticket)
        choices = [RunningText(index, job, most, self._codec, tell, ticket.arrival) for index in range(job.count)]
        with self._changed:
            if self.is_stopping:
                raise _stopping()
            ticket.choices = choices
            self._waiting.append(ticket)
            self._changed.notify()

    def leave(self, ticket: Ticket) -> None:
        """Free the place of a request and cancel it if it is not answered yet."""
        with self._changed:
            self._open -= 1
            ticket.is_over = True
            self._changed.notify()

    def stop(self) -> None:
        """Refuse new and waiting requests, and let the others go on for ``grace_seconds``. It takes no lock, so signal
        handlers may call it."""
        if self._stops_at is None:
            self._stops_at = time.monotonic() + self._limits.grace_seconds

    def _most_new(self, prompt: int, asked: int | None) -> int:
        limit = self._limits.new_tokens
        if asked is not None and asked > limit:
            raise RequestError(400, f"max_tokens is {asked}; this server allows {limit}", parameter="max_tokens")
        capacity, context = self._batch.pages * PAGE, self._codec.context
        if context is not None and prompt >= context:
            raise RequestError(
                400,
                f"the prompt has {prompt} tokens, and the model was trained for texts of {context}; shorten it",
                code="context_length_exceeded",
            )
        if not self._batch.can_hold(prompt + 1):
            raise RequestError(
                400,
                f"the prompt has {prompt} tokens, and this server holds {capacity} at most, the model perhaps fewer; "
                "shorten it",
                code="context_length_exceeded",
            )
        room = (capacity if context is None else min(capacity, context)) - prompt
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
            self._pass_on()
            self._step()
            self._pass_on()

    def _tell(self, ticket: Ticket, event: Event) -> None:
        self._news.append((ticket, event))

    def _pass_on(self) -> None:
        """Pass on all events to the loops of their requests."""
        news, self._news = self._news, []
        for loop in dict.fromkeys(ticket.loop for ticket, _ in news):
            own = [(ticket, event) for ticket, event in news if ticket.loop is loop]
            with contextlib.suppress(RuntimeError):  # a loop that has ended
                loop.call_soon_threadsafe(_hear, own)

    def _drop(self) -> None:
        """End requests that nobody waits for, that took too long, or that have no time left while the server stops."""
        now = time.monotonic()
        for ticket in [*self._running, *self._waiting]:
            if ticket.is_over:
                self._end(ticket, None)
            elif now >= ticket.deadline:
                self._end(ticket, RequestError(504, f"the text took longer than {self._limits.seconds} s"))
            elif self._stops_at is not None and (now >= self._stops_at or not ticket.is_running):
                self._end(ticket, _stopping())

    def _let_in(self) -> None:
        while self._waiting:
            ticket = self._waiting[0]
            texts, pages = len(ticket.choices), ticket.pages
            for other in self._running:
                texts, pages = texts + len(other.choices), pages + other.pages
            if texts > self._limits.sequences or pages > self._batch.pages:
                return
            self._waiting.popleft()
            first = ticket.choices[0]
            try:
                first.number = self._batch.add(first.row.give(len(first.row.pending)))
            except MoecError as error:
                self._tell(ticket, RequestError(400, str(error), parameter="prompt"))
                ticket.is_over = True
            else:
                self._running.append(ticket)
                first.reused = len(first.row.prompt) - self._batch.waiting(first.number)
                self._metrics.began(len(first.row.prompt), first.reused)

    def _step(self) -> None:
        """Compute the next tokens of some sequences. A failure ends all requests, because its cause is unknown."""
        try:
            results = self._batch.step()
        except Exception as error:
            failure = RequestError(500, f"the model failed: {one_line(error)}")
            for ticket in list(self._running):
                self._end(ticket, failure)
            return
        for ticket in list(self._running):
            try:
                self._take(ticket, results)
            except Exception as error:
                self._end(ticket, RequestError(500, f"the text cannot go on: {one_line(error)}"))

    def _take(self, ticket: Ticket, results: Mapping[int, np.ndarray]) -> None:
        """Select the next token of each choice that has logits. All choices begin with the logits of the prompt, which
        is computed once."""
        first = ticket.choices[0]
        if first.number in results and not first.has_begun:
            logits = results[first.number]
            for choice in ticket.choices[1:]:
                choice.number = self._batch.fork(first.number)
                results = {**results, choice.number: logits}
        for choice in ticket.choices:
            if choice.number in results:
                self._take_token(choice, results[choice.number])
        if all(choice.row.ended is not None for choice in ticket.choices):
            self._running.remove(ticket)

    def _take_token(self, choice: RunningText, logits: np.ndarray) -> None:
        assert choice.number is not None
        choice.take(logits, not self._batch.can_hold(self._batch.length(choice.number) + 1))
        if choice.row.ended != "end":
            now = time.monotonic()
            self._metrics.took_token(now - choice.last_time, first=not choice.has_begun)
            choice.last_time = now
        choice.has_begun = True
        if choice.row.ended is None:
            self._batch.extend(choice.number, choice.row.give(1))
        else:
            self._free(choice)

    def _end(self, ticket: Ticket, event: RequestError | None) -> None:
        """Free the sequences of an unfinished request, and send its last event if somebody waits for it."""
        (self._running if ticket in self._running else self._waiting).remove(ticket)
        for choice in ticket.choices:
            self._free(choice)
        if event is not None and not ticket.is_over:
            self._tell(ticket, event)

    def _free(self, choice: RunningText) -> None:
        if choice.number is not None:
            self._batch.remove(choice.number)
            choice.number = None


def _hear(news: Sequence[tuple[Ticket, Event]]) -> None:
    for ticket, event in news:
        ticket.on_event(event)


def _pages(job: TextJob, most: int) -> int:
    """Number of pages of the texts of a job, with ``most`` new tokens each. They share the whole pages of the
    prompt."""
    own = -(-(len(job.prompt) + most) // PAGE)
    return own + (job.count - 1) * (own - len(job.prompt) // PAGE)


def _stopping() -> RequestError:
    return RequestError(503, "the server is stopping; try again later")
