"""Parts of the command line that kinds of targets provide: names, forms, options and commands."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moec import targets
from moec.cli.groups import like, parameters_of
from moec.cli.options import Json
from moec.cli.printing import print_result, shown_progress

STANDALONE = "standalone"
"""Form of a kernel as a standalone program."""
if TYPE_CHECKING:
    Form = enum.Enum
else:  # what kinds of targets declare is not known before
    Form = enum.Enum("Form", {name.upper(): name for name in (*targets.forms(), STANDALONE)}, type=str)
TIR: Form = Form["TIR"]  # type: ignore[index]
_EXAMPLES = ", ".join(example for kind in targets.kinds() for example in kind.examples)
Target = Annotated[str, typer.Option(help=f"Compile for this target: {_EXAMPLES}, ...")]


def with_target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of all kinds of targets to ``command``. It gets those of its ``target`` as ``options``; options
    of another kind are refused."""
    readers = [reader for kind in targets.kinds() if (reader := kind.read_options()) is not None]

    def run(**arguments: Any) -> None:
        read = [reader(**{name: arguments.pop(name) for name in parameters_of(reader)}) for reader in readers]
        chosen = [options for options in read if options is not None]
        for options in chosen:
            targets.check_options(arguments["target"], options)
        command(**arguments, options=chosen[0] if chosen else None)

    own = [parameter for name, parameter in parameters_of(command).items() if name != "options"]
    return like(
        command, run, [*own, *(parameter for reader in readers for parameter in parameters_of(reader).values())]
    )


def target_commands(differs: int) -> list[Callable[..., None]]:
    """List the commands of all kinds of targets. They end with the exit code ``differs`` where a check fails."""
    return [_printing(command, differs) for kind in targets.kinds() for command in kind.commands()]


def _printing(command: Callable[..., Any], differs: int) -> Callable[..., None]:
    def run(as_json: bool, **arguments: Any) -> None:
        with shown_progress() as progress:
            result = command(**arguments, progress=progress)
        print_result(result.data, as_json, result.tables)
        if not result.as_expected:
            raise typer.Exit(differs)

    own = [parameter for name, parameter in parameters_of(command).items() if name != "progress"]
    json = inspect.Parameter("as_json", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=Json)
    return like(command, run, [*own, json])
