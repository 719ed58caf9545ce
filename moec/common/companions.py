"""Files beside a file of moec's that hold a part of it, such as the weights of a model.

A companion is named after the digest of its content, ``<name>.<digest>.data``. A new one therefore never changes what
an older file refers to, and one that is unchanged is recognised.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

from moec.common.errors import MoecError
from moec.common.replacing import COMPANION_NAME, move
from moec.common.seals import digest_of

Place = Callable[[pathlib.Path], list[pathlib.Path]]
"""Function that moves the companions in a folder to their place. Returns their new paths."""


def companion_name(name: str, content: pathlib.Path) -> str:
    """Return the name of a companion of the file ``name``, with this content."""
    return f"{name}.{_digest(content)}.data"


@contextlib.contextmanager
def replacing_companions(path: str | os.PathLike[str], named_in: Callable[[pathlib.Path], set[str]]) -> Iterator[Place]:
    """Context around :func:`moec.common.replacing.replacing`, with a function that places companions of the new file.

    ``named_in`` returns the names of the companions of a file of moec's. Those of the old file are removed at the end.
    After an error they stay, and the new ones are removed.
    """
    place = pathlib.Path(os.path.realpath(path))
    old = named_in(place) if place.is_file() and place.stat().st_size else set()
    new, placed = set[str](), list[pathlib.Path]()

    def place_all(folder: pathlib.Path) -> list[pathlib.Path]:
        for content in sorted(folder.iterdir()):
            if COMPANION_NAME.fullmatch(content.name) is None:
                continue
            new.add(content.name)
            if _placed(content, place.with_name(content.name)):
                placed.append(place.with_name(content.name))
        return [place.with_name(name) for name in sorted(new)]

    try:
        yield place_all
    except BaseException:
        for companion in placed:
            companion.unlink(missing_ok=True)
        raise
    for name in old - new:
        with contextlib.suppress(OSError):  # somebody removed it, or may write to it and not to its folder
            if name == pathlib.Path(name).name and _is_unchanged(place.with_name(name)):
                place.with_name(name).unlink()


def _placed(content: pathlib.Path, target: pathlib.Path) -> bool:
    """Move a companion to its place, where an equal one may be. Returns whether there was none."""
    try:
        move(content, target)
    except FileExistsError:
        if not _is_unchanged(target):
            raise MoecError(f"{target}: was changed since moec wrote it; remove it") from None
        content.unlink()
        return False
    return True


def _is_unchanged(path: pathlib.Path) -> bool:
    named = COMPANION_NAME.fullmatch(path.name)
    return named is not None and path.is_file() and named[1] == _digest(path)


def _digest(content: pathlib.Path) -> str:
    return digest_of(content, content.stat().st_size).hexdigest()[:16]
