"""Machine code of every kernel of a folder of exported models: nvcc spills no registers and has no advisories.

It is an extra, which runs if ``MOEC_ZOO`` names a folder of models, as for ``tests/test_zoo.py``; ``MOEC_ZOO_ONLY``
restricts it to models whose names contain a text. Models share most of their kernels. So nvcc's verdict on each text
and architecture is stored as a file in pytest's cache, and used until the text or nvcc changes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest

from moec import targets
from moec.compiling import compiler
from moec.passes import pipeline as passes
from moec.targets.cuda import pipeline
from moec.targets.cuda.hardware.architectures import LIMITS
from moec.targets.cuda.nvcc import compile_source, find_tool

pytestmark = pytest.mark.nightly

ZOO, ONLY = os.environ.get("MOEC_ZOO", ""), os.environ.get("MOEC_ZOO_ONLY", "")
FOUND = sorted(pathlib.Path(ZOO).glob("*/model.onnx")) if ZOO else []
MODELS = [path.parent for path in FOUND if ONLY in path.parent.name]
SILENT = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
FUNCTION = re.compile(r'^extern "C" __global__ void (?:__\w+__\([^)]*\) )*(\w+)\([^;{]*\) \{\n.*?^}\n', re.M | re.S)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """nvcc's report about a function."""

    resources: str
    advisories: list[str]


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The verdicts stored in ``folder``, by the text of functions without their names."""

    folder: pathlib.Path

    def of(self, source: str, architecture: str) -> Iterator[tuple[str, Verdict]]:
        """The verdicts on the functions of a source, by name; nvcc compiles each text once."""
        keys = {name: _key(source, name, architecture) for name in FUNCTION.findall(source)}
        new = {key: name for name, key in keys.items() if not (self.folder / key).exists()}
        if new:
            kept = FUNCTION.sub(lambda match: match[0] if match[1] in new.values() else "", source)
            compiled = compile_source(kept, architecture)
            assert compiled is not None
            for key, name in new.items():
                advisories = [*compiled.advisories.get(name, ()), *compiled.advisories.get("", ())]
                verdict = Verdict(compiled.resources[name], advisories)
                (self.folder / key).write_text(json.dumps(dataclasses.asdict(verdict)))
        for name, key in keys.items():
            yield name, Verdict(**json.loads((self.folder / key).read_text()))


@functools.cache
def _compiler() -> str:
    return subprocess.run([str(find_tool("nvcc")), "--version"], capture_output=True, text=True, check=True).stdout


def _key(source: str, name: str, architecture: str) -> str:
    kernel = re.sub(r"_kernel(_\d+)?$", "", name)
    text = pipeline.preamble_of(source) + pipeline.sources_of(source, [kernel])[kernel].replace(kernel, "of_any_name")
    return hashlib.sha256("\0".join([_compiler(), architecture, name.removeprefix(kernel), text]).encode()).hexdigest()


@pytest.mark.skipif(bool(MODELS) and find_tool("nvcc") is not None, reason="there is a zoo, and nvcc")
def test_there_is_a_zoo() -> None:
    pytest.skip("nvcc's advice on exported models was not read: set MOEC_ZOO to a folder of models, and install nvcc")


@pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_nothing_is_spilled_or_advised_against(
    folder: pathlib.Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = dict[str, str]()
    monkeypatch.setattr(pipeline, "compile_source", lambda source, architecture: sources.update({architecture: source}))
    model = compiler.import_model(str(folder / "model.onnx"))
    passes.run(model, passes.parse("O2"))
    for architecture in LIMITS:
        targets.get(f"cuda:{architecture}").compile(model)
    verdicts = Verdicts(request.config.cache.mkdir("machine_code"))
    faults = [
        f"{architecture}, {name}: {verdict}"
        for architecture, source in sources.items()
        for name, verdict in verdicts.of(source, architecture)
        if SILENT not in verdict.resources.splitlines() or verdict.advisories
    ]
    assert not faults, "\n".join(faults)
