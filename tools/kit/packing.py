"""Packing: everything that first light needs on a machine without network and without a compiler, as one folder."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import zipfile
from collections.abc import Callable

from kit import artifacts, calls, kernels, layers, runtime_files
from kit.carried.contents import PACKED, write_checksum
from kit.code import ARCHITECTURE, device_code
from kit.plan import KitPlan
from kit.tapes import KitStore
from moec.common.errors import MoecError
from moec.common.scratch import ScratchFolder
from moec.common.user_cache import user_cache
from moec.runtime.device_module import DeviceCall

LARGEST = 60 << 20
"""Bytes of the folder."""
_HERE = pathlib.Path(__file__).resolve().parent
_TAGS = ("blockIdx.x", "threadIdx.x")
_RUN = """#!/bin/sh
# First light on this machine's GPU: ./run.sh 1, then 2 and 3; each takes at most 8 minutes and can be repeated.
kit=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 2
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "VERSION")' || {
    echo "error: $python is not Python VERSION, which the kit is for; set PYTHON, or pack it with --python" >&2
    exit 2
}
PYTHONPATH="$kit${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m carried "$@"
"""


def pack(folder: pathlib.Path, python: str, say: Callable[[str], None], only: str = "") -> int:
    """Write the kit and return its size in bytes. ``only``: beginning of the names of the models to pack.

    Raises MoecError for a folder that is not empty, without nvcc, and for a kit that is too large, which is removed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise MoecError(f"{folder}: exists; expected a new folder; remove it or choose another")
    with ScratchFolder() as scratch:
        work, contents = pathlib.Path(scratch), pathlib.Path(scratch, "contents")
        contents.mkdir()
        say("the runtime")
        wheels = user_cache() / "kit-wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        try:
            runtime_files.copy_runtime(contents / "python", python, wheels)
        except RuntimeError as error:
            raise MoecError(str(error)) from error
        store, plan = KitStore(contents, _helpers(contents), _measures(contents)), KitPlan()
        kernels.pack_kernels(store, plan, work, say, only)
        layers.pack_layers(store, plan, work, say, only)
        artifacts.pack_models(store, plan, work, say, only)
        calls.add_steps(plan, store)
        (contents / "plan.json").write_text(json.dumps(plan.as_data(), indent=1), encoding="utf-8")
        about = {
            "python": python,
            "revision": _revision(),
            "architecture": ARCHITECTURE,
            "left_out": plan.left_out,
        }
        (contents / "about.json").write_text(json.dumps(about), encoding="utf-8")
        say("the folder")
        return _write(folder, contents, python)


def _helpers(contents: pathlib.Path) -> str:
    """Compile the kit's own kernels."""
    source = (_HERE / "carried" / "helpers.cu").read_text(encoding="utf-8")
    calls = [DeviceCall(name, (), _TAGS) for name in ("kit_fill", "kit_hidden", "kit_outputs")]
    return device_code(KitStore(contents, "", ""), source, calls)


def _measures(contents: pathlib.Path) -> str:
    """Compile the kernels that measure a GPU."""
    source = (_HERE / "carried" / "measures.cu").read_text(encoding="utf-8")
    return device_code(KitStore(contents, "", ""), source, [], emulated=False)


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, cwd=_HERE, capture_output=True, text=True, check=False).stdout.strip()


def _write(folder: pathlib.Path, contents: pathlib.Path, python: str) -> int:
    """Write the folder that is carried: contents are packed into one file. Raises MoecError where it is too large."""
    folder.mkdir(parents=True, exist_ok=True)
    write_runner(folder, python)
    packed = folder / PACKED
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:  # a sixth smaller than deflated
        for path in sorted(path for path in contents.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(contents))
    write_checksum(packed)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST:
        shutil.rmtree(folder)
        raise MoecError(f"the kit has {size / 2**20:.1f} MiB; expected at most {LARGEST >> 20}; pack fewer models")
    return size


def write_runner(folder: pathlib.Path, python: str) -> None:
    """Write what runs the contents, by that version of Python."""
    shutil.copytree(_HERE / "carried", folder / "carried", ignore=shutil.ignore_patterns("__pycache__", "*.cu"))
    run = folder / "run.sh"
    run.write_text(_RUN.replace("VERSION", python), encoding="utf-8")
    run.chmod(0o755)
