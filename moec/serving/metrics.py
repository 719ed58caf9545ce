"""Metrics of a server in the form that Prometheus reads."""

from __future__ import annotations

import dataclasses

_FIRST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)
_NEXT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
"""Upper ends of the histograms' parts."""


@dataclasses.dataclass(frozen=True)
class ServerLoad:
    """Use of a server at one time: requests ``waiting`` for a sequence or ``running``, pages ``used`` and ``free``."""

    waiting: int
    running: int
    used: int
    free: int


class Metrics:
    """Numbers of requests and tokens, and times, since the server started."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = registry = CollectorRegistry()
        self._requests = Counter("moec_requests", "Answered requests for texts", ["status"], registry=registry)
        self._prompt_tokens = Counter("moec_prompt_tokens", "Tokens of prompts that were let in", registry=registry)
        self._reused_tokens = Counter(
            "moec_reused_prompt_tokens", "Tokens of prompts that earlier prompts began with", registry=registry
        )
        self._new_tokens = Counter("moec_generated_tokens", "Tokens of texts", registry=registry)
        self._first = Histogram(
            "moec_time_to_first_token_seconds",
            "Time from a request's body to its first token",
            buckets=_FIRST_SECONDS,
            registry=registry,
        )
        self._next = Histogram(
            "moec_time_between_tokens_seconds",
            "Time from one token of a text to the next",
            buckets=_NEXT_SECONDS,
            registry=registry,
        )

        self._gauges = {
            name: Gauge(f"moec_{metric}", documentation, registry=registry)
            for name, metric, documentation in (
                ("waiting", "requests_waiting", "Requests without a sequence yet"),
                ("running", "requests_running", "Requests whose texts are computed"),
                ("used", "pages_used", "Pages of 256 tokens that sequences hold"),
                ("free", "pages_free", "Pages of 256 tokens that are free"),
            )
        }

    def answered(self, status: int) -> None:
        """Count a request by its status of HTTP; by 499 if the client has gone, as nginx logs it."""
        self._requests.labels(status).inc()

    def began(self, prompt_tokens: int, reused: int) -> None:
        """Count a request that got its sequence. ``reused``: tokens of its prompt that are not computed again."""
        self._prompt_tokens.inc(prompt_tokens)
        self._reused_tokens.inc(reused)

    def took_token(self, seconds: float, *, first: bool) -> None:
        """Count a token, ``seconds`` after the one before or, if it is the ``first``, after the request."""
        (self._first if first else self._next).observe(seconds)
        self._new_tokens.inc()

    def text(self, load: ServerLoad) -> tuple[bytes, str]:
        """All metrics, and the content type of that text."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        for name, gauge in self._gauges.items():
            gauge.set(getattr(load, name))
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
