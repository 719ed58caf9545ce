"""Messages and tools of a chat, as templates of models take them."""

from __future__ import annotations

import re
from typing import Any

from moec.common.arguments import shown
from moec.common.plain_files import parse_json
from moec.runtime.chat_template import Conversation
from moec.serving.refusals import wrong

_ROLES = ("system", "user", "assistant", "tool")
_FIELDS = {"assistant": ("role", "content", "tool_calls"), "tool": ("role", "content", "tool_call_id")}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MOST_TOOLS = 128


def messages_of(value: Any) -> Conversation:
    """Check messages. Raises RequestError, which names the field."""
    if not isinstance(value, list) or not value:
        raise wrong("messages", f"is {shown(value)}; expected a list of 1 or more messages")
    return [_message(f"messages[{place}]", message) for place, message in enumerate(value)]


def tools_of(value: Any) -> list[dict[str, Any]]:
    """Check tools, which are functions with a name. Raises RequestError, which names the field."""
    if not isinstance(value, list) or len(value) > _MOST_TOOLS:
        raise wrong("tools", f"is {shown(value)}; expected a list of at most {_MOST_TOOLS} functions")
    for place, tool in enumerate(value):
        function = _function(f"tools[{place}]", tool)
        if not isinstance(function.get("parameters", {}), dict):
            raise wrong(f"tools[{place}].function.parameters", "is something other than a JSON schema, an object")
    return value


def _function(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(value.get("function"), dict):
        raise wrong(where, f"is {shown(value)}; expected an object of type function with a function")
    function = value["function"]
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong(f"{where}.function.name", f"is {shown(name)}; expected 1 to 64 letters, digits, _ and -")
    return function


def _message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise wrong(where, f"is {shown(message)}; expected an object with role and content")
    role = message.get("role")
    if role not in _ROLES:
        raise wrong(f"{where}.role", f"is {shown(role)}; expected one of {', '.join(_ROLES)}")
    fields = _FIELDS.get(role, ("role", "content"))
    extra = [name for name, value in message.items() if name not in fields and value not in (None, [])]
    if extra:
        raise wrong(f"{where}.{extra[0][:60]}", f"is not supported; a message of {role} has {', '.join(fields)}")
    calls = message.get("tool_calls") or []
    content = "" if calls and message.get("content") is None else _text(f"{where}.content", message.get("content"))
    result: dict[str, Any] = {"role": role, "content": content}
    if role == "tool" and message.get("tool_call_id") is not None:
        if not isinstance(message["tool_call_id"], str):
            raise wrong(f"{where}.tool_call_id", "is something other than a text")
        result["tool_call_id"] = message["tool_call_id"]
    if calls:
        result["tool_calls"] = _calls(f"{where}.tool_calls", calls)
    return result


def _text(where: str, content: Any) -> str:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise wrong(where, "has something other than text; expected a text, or parts of type text")
    return "".join(part["text"] for part in parts)


def _calls(where: str, value: Any) -> list[dict[str, Any]]:
    """Check calls that the model made before. Templates write arguments as JSON, so they get objects, not their text;
    arguments that are no JSON stay text."""
    if not isinstance(value, list) or len(value) > _MOST_TOOLS:
        raise wrong(where, f"is {shown(value)}; expected a list of at most {_MOST_TOOLS} calls")
    calls = []
    for place, call in enumerate(value):
        function = _function(f"{where}[{place}]", call)
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str):
            raise wrong(
                f"{where}[{place}].function.arguments", f"is {shown(arguments)}; expected a JSON object as text"
            )
        try:
            content = parse_json(arguments, strict=True)
        except ValueError:
            content = arguments
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": content}})
        if isinstance(call.get("id"), str):
            calls[-1]["id"] = call["id"]
    return calls


def choice_of(value: Any, tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read ``tool_choice``. Returns the tools that the model is told of, and those that it has to call one of; none
    where it need not. Raises RequestError."""
    if value == "none":
        return [], []
    if value in (None, "auto"):
        return tools, []
    if isinstance(value, dict):
        name = _function("tool_choice", value)["name"]
        forced = [tool for tool in tools if tool["function"]["name"] == name]
    elif value == "required":
        forced = tools
    else:
        raise wrong("tool_choice", f"is {shown(value)}; expected none, auto, required, or a function by its name")
    if not forced:
        raise wrong("tool_choice", "forces a call of a function that is not among tools")
    return tools, forced
