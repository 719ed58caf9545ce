"""Process replay: content and identity of records, resumed recording, and reports of comparisons."""

from __future__ import annotations

import importlib
import os
import pathlib
import subprocess
import sys
import types

import onnx
import pytest

import moec
from moec.passes import PASSES

TOOL = pathlib.Path(__file__).resolve().parent.parent / "tools" / "replay.py"
PRODUCT = "=> (float[N,4] y) <float[4] w = {1, 2, 3, 4}> { a = Mul(x, w) b = Mul(a, w) y = Relu(b) }"
TARGETS = ("passes", "cpu:avx2", "cuda:sm_80")


@pytest.fixture(scope="module")
def replay():
    """The tool, and its modules by name."""
    sys.path.insert(0, str(TOOL.parent))
    try:
        tool = importlib.import_module("replay")
        parts = {name: importlib.import_module(f"replaying.{name}") for name in ("differences", "models", "records")}
    finally:
        sys.path.remove(str(TOOL.parent))
    return types.SimpleNamespace(main=tool.main, **parts)


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    """Restore the working folder and the environment, which recording changes, after each test."""
    monkeypatch.chdir(TOOL.parent)
    monkeypatch.setenv("MOEC_KERNEL_CACHE", "off")


def write_model(path: pathlib.Path, body: str = PRODUCT) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g (float[N,4] x) {body}'), path)
    return path


def record(replay, model: pathlib.Path, target: str, folder: pathlib.Path, sources: str = "1", **options) -> bool:
    """Record a file in this process, and return whether there was no record of it yet."""
    own = replay.models.Model(replay.models.Existing(model), options)
    name = replay.models.name_of(model, model.parent.parent)
    return replay.records.Job(name, own, target, folder, sources).run()[0]


def differences(replay, old, new, models=(), targets=(), lines=12) -> list[str]:
    return list(replay.differences.differences(old, new, models, targets, lines))


@pytest.fixture(scope="module")
def two_records(replay, tmp_path_factory):
    """Records of one model in two folders: of this process, and of processes with other hashes and threads."""
    folder = tmp_path_factory.mktemp("replay")
    models = [write_model(folder / name / "models" / "small" / "model.onnx") for name in ("old", "new")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MOEC_KERNEL_CACHE", "off")
        for target in TARGETS:
            record(replay, models[0], target, folder / "old")
    targets = [part for target in TARGETS for part in ("--target", target)]
    command = [sys.executable, str(TOOL), "record", "-o", str(folder / "new"), str(models[1]), *targets]
    changed = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **changed})
    assert done.returncode == 0 and "3 of 3 recorded" in done.stdout, done.stderr
    return folder / "old", folder / "new"


def test_records_of_two_processes_are_equal(replay, two_records, capsys):
    assert replay.main(["compare", *map(str, two_records)]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_record_holds_passes_ir_texts_choices_and_digests_of_weights(replay, two_records):
    indices = replay.records.read_indices(two_records[0])
    assert indices.keys() == {("small", target) for target in TARGETS}
    expected = {"passes.txt", "weights.txt", "manifest/remarks.json", "ir/00-import.onnxtxt"}
    own = {
        "passes": set(),
        "cpu:avx2": {"src/mul_mul_relu.tir", "src/mul_mul_relu.lowered", "choices/mul_mul_relu.json", "src/main.relax"},
        "cuda:sm_80": {"src/mul_mul_relu.cu", "choices/sm_80/mul_mul_relu.json", "src/instructions.txt"},
    }
    for target, names in own.items():
        assert expected | names <= indices["small", target].entries.keys()
    kernel = indices["small", "cpu:avx2"].entries["src/mul_mul_relu.lowered"]
    assert "T.tvm_struct_get" in "".join(replay.records.kept(two_records[0], kernel))


def test_models_and_targets_that_one_record_lacks_are_named(replay, two_records, tmp_path):
    old, new = two_records[0], tmp_path / "record"
    record(replay, write_model(tmp_path / "other" / "model.onnx"), "passes", new)
    assert differences(replay, old, new) == [
        f"other for passes: only in {new}",
        *(f"small for {target}: only in {old}" for target in sorted(TARGETS)),
    ]
    assert differences(replay, old, new, models=["small"], targets=["passes"])[0] == (
        f"{new}: holds no record of what is to be compared"
    )


def test_a_changed_option_of_a_pass_is_named(replay, tmp_path):
    model = write_model(
        tmp_path / "small" / "model.onnx", "=> (float[N,4] y) <float[4] w = {1, 2, 3, 4}> { n = Neg(w) y = Mul(x, n) }"
    )
    for name, limit in (("old", 9), ("new", 1)):
        record(replay, model, "passes", tmp_path / name, passes=f"fold-constants{{limit={limit}}}")
    actual = differences(replay, tmp_path / "old", tmp_path / "new")
    assert actual[0].splitlines()[0] == "small for passes: passes.txt"
    assert (
        "  -fold-constants limit=9" in actual[0].splitlines() and "  +fold-constants limit=1" in actual[0].splitlines()
    )
    assert actual[1] == f"small for passes: ir/01-fold-constants.onnxtxt: only in {tmp_path / 'old'}"


def test_a_refusal_is_recorded_without_the_path(replay, tmp_path):
    model = write_model(tmp_path / "odd" / "model.onnx", "=> (float y) { y = NoSuchOperator(x) }")
    record(replay, model, "passes", tmp_path / "record")
    (index,) = replay.records.read_indices(tmp_path / "record").values()
    (line,) = replay.records.kept(tmp_path / "record", index.entries["refused.txt"])
    assert index.entries.keys() == {"refused.txt"} and "NoSuchOperator" in line and str(tmp_path) not in line


def test_a_failure_of_the_compiler_is_no_refusal(replay, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise FileNotFoundError("a file of the compiler")

    monkeypatch.setattr(PASSES["simplify"](), "apply", fail)
    with pytest.raises(moec.DefectError, match="a file of the compiler"):
        record(replay, write_model(tmp_path / "small" / "model.onnx"), "passes", tmp_path / "record")
    assert replay.records.read_indices(tmp_path / "record") == {}


def test_sources_are_the_compiler_and_the_tool_alone(replay):
    names = ("moec", "passes", "targets", "tools/replaying")
    assert replay.records.source_folders() == [TOOL.parent.parent / name for name in names]


@pytest.fixture
def quick(replay, monkeypatch):
    """The targets that were recorded, in order. The text of each is the options, and ``broken`` interrupts."""
    recorded: list[str] = []

    def texts_of(model, target, options):
        if target == "broken":
            raise KeyboardInterrupt
        recorded.append(target)
        yield "options.txt", f"{options}\n".encode()

    monkeypatch.setattr(replay.records, "texts_of", texts_of)
    return recorded


def test_an_interrupted_record_continues(replay, quick, tmp_path):
    model = write_model(tmp_path / "small" / "model.onnx")
    assert record(replay, model, "a", tmp_path / "record")
    with pytest.raises(KeyboardInterrupt):
        record(replay, model, "broken", tmp_path / "record")
    assert [record(replay, model, target, tmp_path / "record") for target in "ab"] == [False, True]
    assert quick == ["a", "b"]


def test_a_model_its_options_or_sources_that_changed_are_recorded_again(replay, quick, tmp_path):
    model = write_model(tmp_path / "small" / "model.onnx")
    assert record(replay, model, "a", tmp_path / "record")
    assert record(replay, model, "a", tmp_path / "record", passes="O1")
    assert record(replay, model, "a", tmp_path / "record", sources="2", passes="O1")
    write_model(model, PRODUCT.replace("4}", "5}"))
    assert record(replay, model, "a", tmp_path / "record", sources="2", passes="O1")
    assert not record(replay, model, "a", tmp_path / "record", sources="2", passes="O1")


def test_a_text_that_differs_for_several_targets_is_shown_once(replay, quick, tmp_path):
    model = write_model(tmp_path / "small" / "model.onnx")
    for target, level in (("a", "O2"), ("b", "O2"), ("c", "O1")):
        record(replay, model, target, tmp_path / "old", passes="O1")
        record(replay, model, target, tmp_path / "new", passes=level)
    (result,) = differences(replay, tmp_path / "old", tmp_path / "new")
    first, *lines = result.splitlines()
    assert first == "small for a, b: options.txt"
    assert [line for line in lines if "O" in line] == ["  -{'passes': 'O1'}", "  +{'passes': 'O2'}"]
    assert differences(replay, tmp_path / "old", tmp_path / "new", targets=["c"]) == []


def test_a_record_of_several_sources_is_no_match(replay, quick, tmp_path):
    model = write_model(tmp_path / "small" / "model.onnx")
    record(replay, model, "a", tmp_path / "record", sources="1")
    record(replay, model, "b", tmp_path / "record", sources="2")
    actual = differences(replay, tmp_path / "record", tmp_path / "record")
    assert actual == [f"{tmp_path / 'record'}: was recorded from several versions of the sources; record it again"] * 2
    assert differences(replay, tmp_path / "record", tmp_path / "record", targets=["b"]) == []


def test_a_record_of_other_sources_is_not_replaced_unasked(replay, quick, tmp_path, capsys):
    model = write_model(tmp_path / "small" / "model.onnx")
    record(replay, model, "a", tmp_path / "record", sources="others")
    assert replay.main(["record", "-o", str(tmp_path / "record"), str(model), "--target", "passes"]) == 2
    assert "holds a record of other sources" in capsys.readouterr().err
    assert replay.records.read_indices(tmp_path / "record").keys() == {("small", "a")}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "model 'nowhere' is not there; expected a file, a folder, or one of: char_lm"),
        (["digits", "--target", "abacus"], "target 'abacus' is not known"),
        (["."], "has no model; expected files named *.onnx or *.gguf"),
    ],
)
def test_a_model_or_target_that_is_not_there_is_named(replay, tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert replay.main(["record", "-o", str(tmp_path / "record"), *arguments]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "record").exists()


def test_models_of_folders_are_called_by_their_places(replay, tmp_path):
    files = [tmp_path / "a" / "model.onnx", tmp_path / "b" / "deep" / "net.onnx", tmp_path / "c.gguf"]
    for file in files:
        write_model(file)
    assert list(replay.models.chosen_models([str(tmp_path)])) == ["a", "b/deep/net", "c"]
    assert list(replay.models.chosen_models([str(files[0])])) == ["a"]
    with pytest.raises(ValueError, match="two models are called 'a'"):
        replay.models.chosen_models([str(tmp_path), str(files[0])])


@pytest.mark.nightly
def test_every_model_of_the_repository_can_be_written(replay, tmp_path):
    for place, model in enumerate(replay.models.repository_models().values()):
        folder = tmp_path / str(place)
        folder.mkdir()
        assert model.file(folder).is_file()


def test_a_difference_shows_lines_around_it(replay):
    old = [f"line {number}" for number in range(100)]
    new = [*old[:50], "another", *old[51:]]
    assert replay.differences.diff(old, new)[:1] == ["line 51"]
    shown = replay.differences.diff(old, new)
    assert {"-line 50", "+another", " line 49"} <= set(shown) and len(shown) < 10
    assert replay.differences.diff(old, [*old, "more"])[-1] == "+more"
