"""moec's entry among transformers' experts, tested with a fake transformers of two empty packages in new processes."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

TABLE = """
class ExpertsInterface:
    table = {}
    @classmethod
    def register(cls, name, function):
        cls.table[name] = function
"""
SHOW = """
import inspect, sys
from transformers.integrations import moe
print(sorted(moe.ExpertsInterface.table), 'torch' in sys.modules, moe.__loader__ is moe.__spec__.loader,
      type(moe.__loader__).__name__, 'class' in inspect.getsource(moe),
      [one for one in sys.meta_path if 'moec' in type(one).__module__])
"""


def printed(folder: pathlib.Path, program: str, table: str = TABLE) -> str:
    """Run a program where ``transformers`` has this module of experts, and return its output."""
    place = folder / "transformers" / "integrations"
    place.mkdir(parents=True)
    (folder / "transformers" / "__init__.py").touch()
    (place / "__init__.py").touch()
    (place / "moe.py").write_text(table)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import moec",
        "import transformers, moec",
        "import transformers.integrations.moe, moec",
        "import moec, importlib; importlib.reload(moec)",
    ],
)
def test_moec_is_known_in_every_order_of_imports(imports, tmp_path):
    assert printed(tmp_path, imports + SHOW) == "['moec'] False True SourceFileLoader True []"


def test_without_moec_nothing_is_known(tmp_path):
    assert printed(tmp_path, SHOW) == "[] False True SourceFileLoader True []"


def test_a_transformers_without_such_a_table_is_imported_as_ever(tmp_path):
    assert printed(tmp_path, "import moec; from transformers.integrations import moe; print(moe.x)", "x = 3") == "3"


def test_a_module_that_failed_once_is_met_again(tmp_path):
    program = """
import moec, os
try:
    import transformers.integrations.moe
except KeyError:
    os.environ["READY"] = ""
"""
    table = f"import os\nos.environ['READY']\n{TABLE}"
    assert printed(tmp_path, program + SHOW, table).startswith("['moec'] False True")


def test_other_imports_are_left_alone(tmp_path):
    program = "import moec, sys; import transformers.integrations, wave; print(wave.__loader__.__class__.__name__)"
    assert printed(tmp_path, program) == "SourceFileLoader"
