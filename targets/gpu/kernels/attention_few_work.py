"""Partition of the work of :mod:`.attention_few` among lanes, teams and blocks of threads."""

from __future__ import annotations

import dataclasses

from moec.targets.gpu.kernels.attention_operands import VALUE_COLUMNS
from moec.targets.gpu.kernels.launch import WARP
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS

THREADS = 128
_LEAST_LANES = 8
_MOST_ROWS, _ROW_NUMBERS = 8, 128
"""Limits of the rows of a block of threads, and of the numbers of queries and sums of a row in a lane's registers."""
_MOST_KEYS, _KEY_BYTES, _SCORES = 4, 128, 16
"""Limits of the keys that a team reads at once, of the bytes of these keys and their values in a lane's registers, and
of the scores of all rows there. More keys at once mean fewer waits for memory."""
_LOAD_BYTES, _INT8_TOGETHER = 16, 4
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, INT8_ROWS: 1}


@dataclasses.dataclass(frozen=True)
class Share:
    """One lane's share of ``size`` numbers that ``lanes`` lanes read: ``together`` neighbouring numbers in each of
    ``steps`` steps."""

    size: int
    together: int
    lanes: int

    @property
    def steps(self) -> int:
        return -(-self.size // (self.lanes * self.together))

    @property
    def count(self) -> int:
        """Numbers of a lane, including padding."""
        return self.steps * self.together


@dataclasses.dataclass(frozen=True)
class WorkPartition:
    """The partition of a problem's work among lanes, teams and blocks. ``stored``: the type of keys and values."""

    problem: AttentionProblem
    stored: str

    @property
    def _columns(self) -> int:
        return min(self.problem.value_size, VALUE_COLUMNS)

    def _together(self, size: int, row: int) -> int:
        """Numbers that a lane reads at once: 16 bytes if both ``size`` and the ``row`` that they are a part of are
        multiples of that, otherwise one number. Of int8 they are 4 neighbours, one after the other."""
        most = _INT8_TOGETHER if self.stored == INT8_ROWS else _LOAD_BYTES // _BYTES[self.stored]
        return most if size % most == 0 and row % most == 0 else 1

    @property
    def lanes(self) -> int:
        """Lanes of a team: enough to read a row of keys or values at once, rounded up to a power of two; 8 to 32."""
        parts = max(share.size // share.together for share in self._shares(1))
        return min(max(_power_of_two(parts), _LEAST_LANES), WARP)

    def _shares(self, lanes: int) -> tuple[Share, Share]:
        head, values = self.problem.head_size, self.problem.value_row
        return (
            Share(head, self._together(head, head), lanes),
            Share(self._columns, self._together(self._columns, values), lanes),
        )

    @property
    def of_keys(self) -> Share:
        return self._shares(self.lanes)[0]

    @property
    def of_values(self) -> Share:
        return self._shares(self.lanes)[1]

    @property
    def teams(self) -> int:
        return THREADS // self.lanes

    @property
    def rows(self) -> int:
        """Rows of a block of threads: the heads of a group, divided into tiles of equal size that fit into
        registers."""
        ratio, numbers = self.problem.heads_per_group, self.of_keys.count + self.of_values.count
        most = max(1, min(_MOST_ROWS, _ROW_NUMBERS // numbers))
        return -(-ratio // -(-ratio // most))

    @property
    def keys_together(self) -> int:
        """Keys that a team reads at once, a power of two."""
        bytes_read = (self.of_keys.count + self.of_values.count) * _BYTES[self.stored]
        most = max(1, min(_MOST_KEYS, _KEY_BYTES // bytes_read, _SCORES // self.rows))
        return _power_of_two(most + 1) // 2

    @property
    def step_keys(self) -> int:
        """Keys that all teams read at once. It divides :data:`KEYS_TOGETHER`, so these keys lie in one page."""
        return self.teams * self.keys_together


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number``."""
    return 1 << (number - 1).bit_length()
