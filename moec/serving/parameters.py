"""Parameters of a request: those that are served are checked, all others are refused by name."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

from moec.common.arguments import shown
from moec.common.errors import MoecError
from moec.common.plain_files import parse_json
from moec.runtime.prompts import Prompt
from moec.runtime.sampling import Sampling
from moec.serving.grammars import GrammarText, response_grammar
from moec.serving.messages import choice_of, messages_of, tools_of
from moec.serving.refusals import RequestError, wrong
from moec.serving.tool_calls import call_grammar

_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
)
_SERVED = frozenset(
    {
        "model",
        "max_tokens",
        "n",
        "stop",
        "stream",
        "stream_options",
        "logprobs",
        "response_format",
        "grammar",
        *_SAMPLING,
    }
)
_OF_CHATS = frozenset({"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice"})
_OF_TEXTS = frozenset({"prompt"})
_WITHOUT_EFFECT = frozenset({"user", "metadata"})
"""Parameters that name a request for its sender and change nothing in its text."""
_NEUTRAL: Mapping[str, Any] = {
    "best_of": 1,
    "echo": False,
    "store": False,
    "functions": [],
    "suffix": "",
    "parallel_tool_calls": True,
}
"""Parameters that are not served, with the values that ask for nothing."""
_MOST_STOPS, _LONGEST_STOP = 4, 500
_MOST_CHOICES, _MOST_TOP, _MOST_TOP_OF_TEXTS = 128, 20, 5
_MOST_BIASES = 500
_LARGEST = 1 << 31


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for ``count`` texts. ``tools``: functions that the model is told of. ``forces_call``: whether
    ``grammar`` is that of their calls. ``new_tokens``: None for as many
    as the server allows. ``top_logprobs``: number of most likely tokens that are told with each one; None where no
    probabilities are. ``streams_usage``: whether the stream ends with the numbers of tokens."""

    is_chat: bool
    model: str
    prompt: Prompt
    tools: list[dict[str, Any]]
    forces_call: bool
    grammar: GrammarText | None
    sampling: Sampling
    new_tokens: int | None
    stops: list[str]
    count: int
    top_logprobs: int | None
    streams: bool
    streams_usage: bool


def request_of(body: bytes, *, chat: bool) -> Request:
    """Read the body of a request for a chat or for a text. Raises RequestError, which names the parameter."""
    asked = _object(body)
    _check_names(asked, _SERVED | (_OF_CHATS if chat else _OF_TEXTS))
    streams, options = _flag(asked, "stream"), asked.get("stream_options", {})
    if options and not streams:
        raise wrong("stream_options", "is about streams; expected stream to be true")
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise wrong("stream_options", "has other options than include_usage, the only one")
    tools, forced = choice_of(asked.get("tool_choice"), tools_of(asked.get("tools", [])))
    return Request(
        is_chat=chat,
        model=_text("model", asked.get("model")),
        prompt=messages_of(asked.get("messages")) if chat else _prompt(asked.get("prompt")),
        tools=tools,
        forces_call=bool(forced),
        grammar=_grammar(asked, forced),
        sampling=_sampling(asked),
        new_tokens=_new_tokens(asked),
        stops=_stops(asked.get("stop", [])),
        count=_whole(asked, "n", 1, _MOST_CHOICES) if "n" in asked else 1,
        top_logprobs=_top_logprobs(asked) if chat else _completion_logprobs(asked),
        streams=streams,
        streams_usage=_flag(options, "include_usage"),
    )


def _object(body: bytes) -> dict[str, Any]:
    """Parse a body. A parameter that is null counts as left out, as in OpenAI's API."""
    try:
        asked = parse_json(body, strict=True)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON ({str(error)[:100]}); send one object") from error
    if not isinstance(asked, dict):
        raise RequestError(400, f"the body is {shown(asked)}; expected an object of parameters")
    return {name: value for name, value in asked.items() if value is not None}


def _check_names(asked: Mapping[str, Any], served: frozenset[str]) -> None:
    for name, value in asked.items():
        if name in served or name in _WITHOUT_EFFECT:
            continue
        if name not in _NEUTRAL:
            raise RequestError(
                400,
                f"{name[:60]!r} is no parameter that is served; leave it out",
                parameter=name[:60],
                code="unknown_parameter",
            )
        if value != _NEUTRAL[name]:
            neutral = json.dumps(_NEUTRAL[name])
            raise RequestError(
                400,
                f"{name} is not supported; leave it out, or give {neutral}",
                parameter=name,
                code="unsupported_parameter",
            )


def _sampling(asked: dict[str, Any]) -> Sampling:
    """Options of the draws. As in OpenAI's API the temperature is 1 and the seed another each time, if not given."""
    options: dict[str, Any] = {name: asked[name] for name in _SAMPLING if name in asked}
    if "logit_bias" in options:
        options["logit_bias"] = _bias(options["logit_bias"])
    usual: dict[str, Any] = {"temperature": 1.0, "seed": secrets.randbits(48)}
    for name, value in options.items():
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise wrong(name, "has more than 64 bits")
        try:
            Sampling(**{**usual, name: value})
        except MoecError as error:
            raise RequestError(400, str(error), parameter=name) from error
    try:
        return Sampling(**{**usual, **options})
    except MoecError as error:
        raise RequestError(400, str(error), parameter="temperature") from error


def _grammar(asked: Mapping[str, Any], forced: list[dict[str, Any]]) -> GrammarText | None:
    """The grammar that texts follow. ``forced``: tools that have to be called."""
    response = response_grammar(asked.get("response_format", {"type": "text"}))
    own = GrammarText("lark", _text("grammar", asked["grammar"]), "grammar") if "grammar" in asked else None
    calls = call_grammar(forced) if forced else None
    grammars = [grammar for grammar in (response, own, calls) if grammar is not None]
    if len(grammars) > 1:
        first, second, *_ = grammars
        raise wrong(second.parameter, f"stands beside {first.parameter}, which is a grammar, too; give one of them")
    return grammars[0] if grammars else None


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict) or not all(token.isdecimal() and len(token) < 10 for token in value):
        raise wrong("logit_bias", "is something other than an object of numbers by token ids")
    if len(value) > _MOST_BIASES:
        raise wrong("logit_bias", f"has {len(value)} tokens; expected at most {_MOST_BIASES}")
    return tuple((int(token), number) for token, number in value.items())


def _top_logprobs(asked: Mapping[str, Any]) -> int | None:
    if _flag(asked, "logprobs"):
        return _whole(asked, "top_logprobs", 0, _MOST_TOP) if "top_logprobs" in asked else 0
    if asked.get("top_logprobs"):
        raise wrong("top_logprobs", "is about probabilities; expected logprobs to be true")
    return None


def _completion_logprobs(asked: Mapping[str, Any]) -> int | None:
    if asked.get("logprobs", False) is False:
        return None
    return _whole(asked, "logprobs", 0, _MOST_TOP_OF_TEXTS)


def _whole(asked: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = asked[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(name, f"is {shown(value)}; expected a whole number from {least} to {most}")
    return value


def _new_tokens(asked: Mapping[str, Any]) -> int | None:
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in asked]
    for name in names:
        value = asked[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _LARGEST:
            raise wrong(name, f"is {shown(value)}; expected a whole number from 1 up")
    if len(names) > 1:
        raise wrong("max_tokens", "is another name of max_completion_tokens; give one of them")
    return asked[names[0]] if names else None


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS:
        raise wrong("stop", f"is {shown(value)}; expected a string, or a list of at most {_MOST_STOPS}")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= _LONGEST_STOP:
            raise wrong("stop", f"has {shown(stop)}; expected a string of 1 to {_LONGEST_STOP} characters")
    return stops


def _prompt(value: Any) -> Prompt:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise wrong("prompt", f"is {shown(value)}; expected a text, or a list of 1 or more token ids")
    for token in value:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < _LARGEST:
            raise wrong("prompt", f"has {shown(token)}; expected one text, or a list of token ids")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(name, f"is {shown(value)}; expected a string")
    return value


def _flag(asked: Mapping[str, Any], name: str) -> bool:
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, f"is {shown(value)}; expected true or false")
    return value is True
