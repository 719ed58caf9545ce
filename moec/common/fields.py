"""Typed access to the fields of JSON objects in files. A missing field, or one of another type, raises a MoecError that
names the file, the object and the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moec.common.errors import MoecError

LARGEST = 1 << 62
"""Bound of counts and sizes in files."""


class Fields:
    """An object of a file. ``where`` names both in messages, which end with ``advice``."""

    def __init__(self, content: Any, where: str, advice: str) -> None:
        """Raise MoecError for anything but an object."""
        self._where, self._advice = where, advice
        if not isinstance(content, dict):
            raise MoecError(f"{where}: is {_shown(content)}, expected an object; {advice}")
        self._content: Mapping[str, Any] = content

    def whole(self, key: str, least: int = 0, default: int | None = None) -> int:
        """Read a whole number from ``least`` on."""
        value = self._content.get(key, default)
        if type(value) is not int or not least <= value < LARGEST:
            raise self.wrong(key, f"a whole number from {least} on")
        return value

    def optional_whole(self, key: str) -> int | None:
        """Read a whole number from 0 on, or None where it is null or missing."""
        return None if self._content.get(key) is None else self.whole(key)

    def text(self, key: str) -> str:
        return self._of_type(key, str, "a text")

    def optional_text(self, key: str) -> str | None:
        """Read a text, or None where it is null or missing."""
        return None if self._content.get(key) is None else self.text(key)

    def object(self, key: str) -> dict[str, Any]:
        return self._of_type(key, dict, "an object")

    def texts(self, key: str) -> list[str]:
        items = self._of_type(key, list, "a list of texts")
        if not all(isinstance(item, str) for item in items):
            raise self.wrong(key, "a list of texts")
        return items

    def texts_by_name(self, key: str) -> dict[str, str]:
        texts = self.object(key)
        if not all(isinstance(text, str) for text in texts.values()):
            raise self.wrong(key, "an object of texts")
        return texts

    def objects(self, key: str) -> list[Fields]:
        entries = self._of_type(key, list, "a list of objects")
        return [Fields(entry, f"{self._where}: {key} {place}", self._advice) for place, entry in enumerate(entries)]

    def check_keys(self, allowed: set[str]) -> None:
        """Raise MoecError for an unknown field."""
        stray = next((key for key in self._content if key not in allowed), None)
        if stray is not None:
            raise MoecError(f"{self._where}: has the unknown field {stray[:80]!r}; {self._advice}")

    def wrong(self, key: str, expected: str) -> MoecError:
        """Make the error for a field that is not as expected."""
        actual = f"is {_shown(self._content[key])}" if key in self._content else "is missing"
        return MoecError(f"{self._where}: {key} {actual}, expected {expected}; {self._advice}")

    def _of_type(self, key: str, kind: type, expected: str) -> Any:
        value = self._content.get(key)
        if not isinstance(value, kind):
            raise self.wrong(key, expected)
        return value


def _shown(value: Any) -> str:
    """Describe a value in JSON's terms, cut where it is long."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= LARGEST:  # printing thousands of digits takes long, or is refused
        return "a number of too many digits"
    return repr(value)[:80]
