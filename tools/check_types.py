"""Run pyrefly over moec laid out as it is imported.

``passes/``, ``simulators/`` and ``targets/`` stand at the top of the repository but are the packages ``moec.passes``,
``moec.simulators`` and ``moec.targets``; a static checker cannot follow setuptools' mapping, so it gets a copy instead.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAPPED = ("passes", "simulators", "targets")
CONFIG = {
    "project-includes": ["moec"],
    "python-version": "3.10",
    "python-interpreter-path": sys.executable,
    # These have few or wrong annotations, or belong to an extra; tests check their results instead.
    "replace-imports-with-any": [
        *(
            "llguidance.*",
            "matplotlib.*",
            "prometheus_client.*",
            "scipy.*",
            "starlette.*",
            "sympy.*",
            "transformers.*",
            "tvm.*",
            "tvm_ffi.*",
            "uvicorn.*",
        ),
    ],
}


def main() -> int:
    ignored = shutil.ignore_patterns("__pycache__")
    with tempfile.TemporaryDirectory() as folder:
        package = pathlib.Path(folder, "moec")
        shutil.copytree(ROOT / "moec", package, ignore=ignored)
        for name in MAPPED:
            shutil.copytree(ROOT / name, package / name, ignore=ignored)
        # In TOML, every array and string of these is written as in JSON.
        config = "".join(f"{name} = {json.dumps(value)}\n" for name, value in CONFIG.items())
        pathlib.Path(folder, "pyrefly.toml").write_text(config)
        command = [
            sys.executable,
            "-m",
            "pyrefly",
            "check",
            "--output-format=min-text",
            "--min-severity=error",
            "--summary=none",
        ]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
