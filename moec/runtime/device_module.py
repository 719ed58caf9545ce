"""The device module in a program's host code: the format in which TVM embeds it, and the replacement of its code.

TVM's host code of a GPU program carries a blob: a format, a description of each kernel's call, and the code. The
compiler embeds source text; it is replaced by the code to run when the program is loaded.
"""

from __future__ import annotations

import dataclasses
import struct

from moec.common.errors import ArtifactError

_LENGTH = struct.Struct("<Q")
BEGINS_EARLY_TAG = "tirx.use_programtic_dependent_launch"
"""TVM's tag, in its own spelling, of a launch that may begin before the previous kernel has ended."""
LAUNCH_FLAGS = frozenset({BEGINS_EARLY_TAG, "tirx.use_cooperative_launch"})
"""Tags of launches that stand for no number."""
_TYPE, _EXTRA = struct.Struct("<BBH"), struct.Struct("<i")
_TENSOR_MAP = 1
"""Number of arguments that are tensor maps, in the list of what arguments are beside their types."""


@dataclasses.dataclass(frozen=True)
class DeviceCall:
    """Call of a kernel by the host: its arguments, then one number for each entry of ``launch`` (``blockIdx.x``, ...)
    except :data:`LAUNCH_FLAGS`. ``types``: code and bits of each argument, as DLPack numbers them, with 3 for a
    pointer; ``tensor_maps``: places of the arguments that are addresses of tensor maps."""

    name: str
    types: tuple[tuple[int, int], ...]
    launch: tuple[str, ...]
    tensor_maps: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class DeviceModule:
    """Parts of a blob."""

    kernels: tuple[DeviceCall, ...]
    code: bytes
    _table: bytes
    """Bytes that describe the kernels, unchanged."""

    @staticmethod
    def parse(blob: bytes) -> DeviceModule:
        """Parse a blob. Raises ArtifactError for bytes that this version of TVM does not write."""
        try:
            reader = _Reader(blob)
            reader.text()
            start = reader.position
            kernels = tuple(_read_kernel(reader) for _ in range(reader.number()))
            table = blob[start : reader.position]
            code = reader.take()
        except (struct.error, UnicodeDecodeError) as error:
            raise ArtifactError(f"the device module cannot be read ({error}); compile the model again") from error
        return DeviceModule(kernels, code, table)

    def with_code(self, format_name: str, code: bytes) -> bytes:
        """Return the blob with other code, such as a cubin in place of the source."""
        return _counted(format_name.encode()) + self._table + _counted(code)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.position = data, 0

    def number(self) -> int:
        (value,) = _LENGTH.unpack_from(self._data, self.position)
        self.position += _LENGTH.size
        return int(value)

    def take(self, size: int | None = None) -> bytes:
        size = self.number() if size is None else size
        if size > len(self._data) - self.position:
            raise struct.error(f"{size} bytes expected, {len(self._data) - self.position} left")
        self.position += size
        return self._data[self.position - size : self.position]

    def text(self) -> str:
        return self.take().decode()


def _read_kernel(reader: _Reader) -> DeviceCall:
    reader.text()  # the key, which is the name
    name = reader.text()
    types = _TYPE.iter_unpack(reader.take(reader.number() * _TYPE.size))
    pairs = tuple((code, bits) for code, bits, _lanes in types)
    launch = tuple(reader.text() for _ in range(reader.number()))
    extras = _EXTRA.iter_unpack(reader.take(reader.number() * _EXTRA.size))
    maps = frozenset(place for place, (extra,) in enumerate(extras) if extra == _TENSOR_MAP)
    return DeviceCall(name, pairs, launch, maps)


def _counted(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data
