"""Run pyright over moec laid out as it is imported.

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
CONFIG = {
    "include": ["moec"],
    "typeCheckingMode": "standard",
    "pythonVersion": "3.10",
    # The borrowed libraries ship few or wrong annotations; what they return is checked by tests instead.
    "useLibraryCodeForTypes": False,
    "reportMissingTypeStubs": False,
    "reportMissingImports": "warning",
    "reportPrivateImportUsage": False,
}


def main() -> int:
    ignored = shutil.ignore_patterns("__pycache__")
    with tempfile.TemporaryDirectory() as folder:
        package = pathlib.Path(folder, "moec")
        shutil.copytree(ROOT / "moec", package, ignore=ignored)
        for name in ("passes", "simulators", "targets"):
            shutil.copytree(ROOT / name, package / name, ignore=ignored)
        pathlib.Path(folder, "pyrightconfig.json").write_text(json.dumps(CONFIG))
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        print(done.stdout.replace(folder + "/", ""), end="")
        print(done.stderr, end="", file=sys.stderr)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
