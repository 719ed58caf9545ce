"""The texts that are recorded of a model: those of its artifact, in which no machine code is.

They follow from the model and the compiler alone, not from times, paths, hashes of Python, the number of threads, or
what else is recorded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from replaying.machine_code import passes_alone, texts_instead

PASSES = "passes"
"""In the place of a target: what passes make of a model, without any code."""
CALIBRATION = ("calibration.npz", "inputs.npz")
"""Files next to a model. The scales of an FPGA's design come from the first that is there."""
MAX_TOKENS = 128
"""The largest number of tokens in a call of an FPGA's design, where the model fixes none."""
_TEXT_SUFFIXES = {".ll": ".lowered", ".o": ".txt"}
"""The suffixes of texts by those of the machine code whose place they take."""
_APART = {"files", "digest", "format_version", "moec_version", "weights"}
"""Fields of a manifest about versions, and about bytes of files, which are recorded apart."""


def digest_of_model(model: pathlib.Path, options: Mapping[str, Any]) -> str:
    """A digest of a model, with files beside it whose names begin likewise, its calibration data, and its options."""
    digest = hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode())
    for file in sorted({*model.parent.glob(f"{model.stem}*"), *calibration_of(model)}):
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def calibration_of(model: pathlib.Path) -> list[pathlib.Path]:
    """The file of calibration data, if there is one."""
    return [file for name in CALIBRATION if (file := model.with_name(name)).is_file()][:1]


def texts_of(model: pathlib.Path, target: str, options: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """All that is recorded of a model, by name, or the reason why it is refused. Changes this process's folder. Raises
    DefectError where the compiler fails, for that may follow from anything."""
    from moec import DefectError, MoecError
    from moec.compiling import compiler
    from moec.compiling.compile_options import CompileOptions

    os.environ["MOEC_KERNEL_CACHE"] = "off"
    os.chdir(model.parent)  # texts name the model by its file alone
    alone = target == PASSES
    with tempfile.TemporaryDirectory() as temporary, passes_alone() if alone else texts_instead():
        artifact = pathlib.Path(temporary, "made")
        try:
            name, for_target = "cpu" if alone else target, fpga_options(model, target)
            compiler.write(model.name, artifact, CompileOptions(target=name, target_options=for_target, **options))
        except DefectError:
            raise
        except MoecError as error:
            yield "refused.txt", f"{error}\n".encode()
            return
        yield from texts_of_artifact(artifact)


def fpga_options(model: pathlib.Path, target: str) -> Any:
    """Options of a project: the model's calibration data. None for programs."""
    if not target.startswith("hls"):
        return None
    import numpy as np

    from moec.targets.hls.options import HlsOptions

    calibration = [dict(np.load(file)) for file in calibration_of(model)]
    return HlsOptions(calibration=calibration[0] if calibration else None, max_tokens=MAX_TOKENS)


def texts_of_artifact(artifact: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """The texts of an artifact: each field of its manifest, what was chosen for each kernel, digests of weights, and
    all other files, those that are no text by their digests."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    yield "passes.txt", "".join(f"{step}\n" for step in steps_of(manifest["provenance"].pop("passes"))).encode()
    yield "weights.txt", weights_of(artifact / "weights.bin", manifest["weights"]).encode()
    del manifest["provenance"]["tools"]
    for program in manifest["programs"]:
        for kernel in program.pop("kernels"):
            yield f"choices/{program['architecture']}/{kernel['name']}.json".replace("//", "/"), as_text(kernel)
    for field in manifest.keys() - _APART:
        yield f"manifest/{field}.json", as_text(manifest[field])
    for file in sorted(path for path in artifact.rglob("*") if path.is_file()):
        name = file.relative_to(artifact).as_posix()
        if name not in ("manifest.json", "weights.bin") and file.suffix != ".s" and file.stat().st_size:
            yield name.removesuffix(file.suffix) + _TEXT_SUFFIXES.get(file.suffix, file.suffix), file.read_bytes()


def steps_of(pipeline: str) -> list[str]:
    """A line for each pass of a pipeline text, with all of its options."""
    from moec.passes.pipeline import parse

    def options_of(step: Any) -> str:
        return "".join(f" {field.name}={getattr(step, field.name)!r}" for field in dataclasses.fields(step))

    return [f"{step.name}{options_of(step)}" for step in parse(pipeline)]


def weights_of(file: pathlib.Path, entries: list[dict[str, Any]]) -> str:
    """A line for each weight: its name, type, shape and digest."""
    lines = []
    with file.open("rb") as content:
        for entry in entries:
            content.seek(entry["offset"])
            digest = hashlib.sha256(content.read(entry["bytes"])).hexdigest()
            lines.append(f"{entry['name']} {entry['dtype']}{entry['shape']} {digest}\n")
    return "".join(lines)


def as_text(data: Any) -> bytes:
    """Plain data as JSON, keys in alphabetical order."""
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
