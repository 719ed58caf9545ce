"""The part of moec and of its dependencies that loads and runs artifacts, as one folder for ``PYTHONPATH``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator

from moec.simulators.cuda.driver import BUILT, driver_library

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_OWN = (
    *("moec/__init__.py", "moec/common", "moec/runtime", "moec/artifacts/__init__.py", "moec/artifacts/loading.py"),
    *("moec/placing/__init__.py", "moec/placing/placement.py", "moec/placing/plan.py", "moec/placing/judge.py"),
    *("simulators/__init__.py", "simulators/cuda"),
    *("targets/__init__.py", "targets/kind.py", "targets/build_cache.py", "targets/cpu/__init__.py"),
    *("targets/cpu/kind.py", "targets/hls/__init__.py", "targets/hls/kind.py", "targets/cuda/__init__.py"),
    *("targets/cuda/kind.py", "targets/cuda/device", "targets/cuda/hardware"),
)
"""moec's modules, files and whole packages: nothing that compiles."""
_BY_VERSION = {"tvm_ffi": "apache-tvm-ffi", "ml_dtypes": "ml_dtypes"}
"""Packages with modules for one version of Python each, and their distributions."""
_LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_cuda.so")
_NOT_RUN = ("include", "src", "3rdparty", "cython", "share", "tests", "__pycache__", "*.pyi")
"""Parts of packages that no program needs. TVM FFI's library for tests is none: its module is linked with it."""


def copy_runtime(folder: pathlib.Path, python: str, wheels: pathlib.Path) -> None:
    """Copy everything into ``folder``. ``python``: the version to run it with (``3.12``); ``wheels``: the folder of
    wheels for it, which gets those that it lacks. Raises RuntimeError where one cannot be had."""
    for source, target in own_files():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, folder / target)
    shutil.copy(driver_library(), folder / "moec" / "simulators" / "cuda" / BUILT.name)
    for package in ("tvm_ffi_orcjit", "typing_extensions", "filelock"):
        _copy_installed(package, folder)
    libraries = folder / "tvm" / "lib"
    libraries.mkdir(parents=True)
    (folder / "tvm" / "__init__.py").write_text('"""TVM\'s runtime; its compiler is not here."""\n', encoding="utf-8")
    for name in _LIBRARIES:
        shutil.copy(_package("tvm") / "lib" / name, libraries / name)
    for package, distribution in _BY_VERSION.items():
        if python == f"{sys.version_info.major}.{sys.version_info.minor}":
            _copy_installed(package, folder)
        else:
            _unpack(_wheel(distribution, python, wheels), folder)


def own_files() -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Iterate over moec's own files: each with its place in the repository and in the folder."""
    for name in _OWN:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not {"__pycache__", "include"} & set(file.relative_to(ROOT).parts):
                source = file.relative_to(ROOT)
                yield source, source if name.startswith("moec/") else pathlib.Path("moec", source)


def _package(name: str) -> pathlib.Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is installed"
    path = pathlib.Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path


def _copy_installed(name: str, folder: pathlib.Path) -> None:
    source = _package(name)
    if source.is_dir():
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*_NOT_RUN))
    else:
        shutil.copy(source, folder)


def _wheel(name: str, python: str, wheels: pathlib.Path) -> pathlib.Path:
    """Find the wheel of the installed version for another Python, or download it."""
    version, tag = importlib.metadata.version(name), f"cp{python.replace('.', '')}"
    pattern = f"{name.replace('-', '_')}-{version}-{tag}-{tag}-*x86_64.whl"
    if not list(wheels.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", python, "--dest", str(wheels), f"{name}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} {version} for Python {python} cannot be had: {done.stderr.strip()[-300:]}")
    present = sorted(wheels.glob(pattern))
    if not present:
        raise RuntimeError(f"{wheels}: has no {pattern} after its download")
    return present[0]


def _unpack(wheel: pathlib.Path, folder: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            parts = pathlib.PurePosixPath(name)
            if not any(parts.match(pattern) or pattern in parts.parts for pattern in _NOT_RUN):
                archive.extract(name, folder)
