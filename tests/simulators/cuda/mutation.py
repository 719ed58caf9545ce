"""Seeded faults: a kernel's text is changed, and one of several ways to run it must notice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from .emulated import Kernel, load

SCHEDULES = (
    ("latest", 0, True),
    ("earliest", 96, True),
    ("latest", 96, False),
    ("late copies", 0, False),
    ("late products", 0, False),
)
"""Ways to run a kernel: the completion of asynchronous work, the first thread, and whether accesses are watched."""
NO_FAULT = "no fault"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A replacement of text in a kernel."""

    old: str
    new: str
    times: int = 1
    """The number of occurrences of the old text."""

    def seed(self, source: str) -> str:
        count = source.count(self.old)
        if count != self.times:
            raise ValueError(f"{self.old!r} is there {count} times, not {self.times}; say what to change")
        return source.replace(self.old, self.new)


class Mutants:
    """A source with one kernel, ``product``, and its variants with one fault each, in a single library."""

    def __init__(self, source: str, faults: Mapping[str, Fault]) -> None:
        sources = {NO_FAULT: source, **{name: fault.seed(source) for name, fault in faults.items()}}
        self._kernels = {name: f"product_{i}" for i, name in enumerate(sources)}
        self._source = "#include <cuda_fp16.h>\n"
        for name, text in sources.items():
            kernel = self._kernels[name]
            self._source += f"namespace of_{kernel} {{\n{text.replace(' product(', f' {kernel}(')}\n}}\n"
            self._source += f"using namespace of_{kernel};\n"
        self._loaded: dict[tuple[str, int, bool], dict[str, Kernel]] = {}

    def kernel(self, fault: str, schedule: tuple[str, int, bool]) -> Kernel:
        if schedule not in self._loaded:
            completion, first_thread, watch = schedule
            options = {"completion": completion, "first_thread": first_thread, "watch": watch}
            self._loaded[schedule] = load(self._source, *self._kernels.values(), **options)
        return self._loaded[schedule][self._kernels[fault]]

    def caught(
        self, fault: str, wrong: Callable[[Kernel], bool], schedules: Sequence[tuple[str, int, bool]] = SCHEDULES
    ) -> str | None:
        """The way in which a fault was caught; None where it was not. ``wrong``: whether a kernel's results are
        wrong."""
        for schedule in schedules:
            try:
                if wrong(self.kernel(fault, schedule)):
                    return f"wrong results, {schedule}"
            except RuntimeError as error:
                return f"{error}, {schedule}"
        return None
