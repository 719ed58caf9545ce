"""Refusals of a request, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

from moec.common.errors import MoecError

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}

GONE = 499
"""Status of a request whose client has gone, as nginx logs it; nobody reads it."""


def wrong(name: str, what: str) -> RequestError:
    """Refusal of a parameter, whose name begins the sentence."""
    return RequestError(400, f"{name} {what}", parameter=name)


class RequestError(MoecError):
    """A request that is not answered. ``status``: of HTTP. ``parameter``: name of the one that is wrong, if any.
    ``code``: short name of the reason, if OpenAI has one."""

    def __init__(self, status: int, message: str, *, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.parameter, self.code = status, parameter, code

    def body(self) -> dict[str, Any]:
        """The answer, as OpenAI's clients read it."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.parameter, "code": self.code}}
