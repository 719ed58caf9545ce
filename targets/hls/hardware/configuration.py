"""Reader of a project's ``hls_config.cfg`` and ``link.cfg``: the simulation builds what the vendor's tools would."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping

from moec.common.errors import MoecError

CONFIGURATION = "hls_config.cfg"
LINK = "link.cfg"
LEAST_VERSION = "2021.2"
"""The first Vitis HLS whose parser (Xilinx/hls-llvm-project, ParseXlxPragma.cpp) accepts all pragmas of generated code;
later ones do too. 2020.2 has no ``type=`` of partitions and dependences, no ``dependent=`` and no ``compact=``, and
skips such pragmas. Its positional words (``complete``, ``inter false``) are not used."""
_CONNECTION = re.compile(r"\w+\.m_axi_(\w+):(\S+)")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The build of a project. Paths are relative to the project. ``flags``: for the compiler; ``arguments``: for the
    testbench; ``ports``: pairs of a bundle and the memory port it is connected to."""

    top: str
    sources: tuple[str, ...]
    testbench: tuple[str, ...]
    flags: tuple[str, ...]
    arguments: tuple[str, ...]
    ports: tuple[tuple[str, str], ...]


def read_configuration(files: Mapping[str, bytes]) -> Configuration:
    """The configuration of a project, given as contents by path. Raises MoecError if there is none, or if it names no
    sources or missing files."""
    if CONFIGURATION not in files:
        raise MoecError(f"{CONFIGURATION} is not among the project's files; expected a project that moec generated")
    values = _values(files[CONFIGURATION])
    configuration = Configuration(
        top=" ".join(values.get("syn.top", [])),
        sources=tuple(values.get("syn.file", [])),
        testbench=tuple(name for name in values.get("tb.file", []) if name.endswith((".cpp", ".cc", ".c"))),
        flags=tuple(dict.fromkeys(shlex.split(" ".join(values.get("syn.cflags", []) + values.get("tb.cflags", []))))),
        arguments=tuple(shlex.split(" ".join(values.get("csim.argv", [])))),
        ports=_ports(files.get(LINK, b"")),
    )
    if not (configuration.top and configuration.sources and configuration.testbench):
        raise MoecError(f"{CONFIGURATION}: expected syn.top, syn.file and a tb.file of C++; one of them is missing")
    missing = [name for name in (*configuration.sources, *configuration.testbench) if name not in files]
    if missing:
        raise MoecError(f"{CONFIGURATION}: {', '.join(missing)} is not among the project's files")
    return configuration


def _values(text: bytes) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in text.decode().splitlines():
        key, equals, value = line.split("#")[0].partition("=")
        if equals:
            values.setdefault(key.strip(), []).append(value.strip())
    return values


def _ports(link: bytes) -> tuple[tuple[str, str], ...]:
    """Pairs of bundle and port. Raises MoecError for a connection that does not name both."""
    pairs = []
    for connection in _values(link).get("sp", []):
        match = _CONNECTION.fullmatch(connection)
        if match is None:
            raise MoecError(f"{LINK}: sp={connection}; expected sp=UNIT.m_axi_BUNDLE:PORT")
        pairs.append((match[1], match[2]))
    return tuple(pairs)
