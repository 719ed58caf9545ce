"""Groups of options: a command takes options that belong together as one object.

A group is a dataclass whose fields are options. :func:`with_groups` puts them into the command's signature for typer.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is annotated with a group by the options of the group."""
    own = parameters_of(command)
    groups = {name: own[name].annotation for name in own if dataclasses.is_dataclass(own[name].annotation)}

    def run(**arguments: Any) -> None:
        for name, group in groups.items():
            arguments[name] = group(**{option: arguments.pop(option) for option in parameters_of(group)})
        command(**arguments)

    shown = [
        parameter
        for name in own
        for parameter in (parameters_of(groups[name]).values() if name in groups else [own[name]])
    ]
    return like(command, run, shown)


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function, eval_str=True).parameters)


def like(
    command: Callable[..., Any], run: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give ``run`` the name and help of ``command``, and these parameters for typer to read."""
    wrapped = functools.wraps(command)(run)
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    wrapped.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped
