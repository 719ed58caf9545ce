"""From a profile to a plan that is edited and compiled, as a user types it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from typer.testing import CliRunner

from moec import load
from moec.cli.main import app
from moec.common.errors import MoecError
from moec.placing.plan import parse_plan, read_plan
from moec.profiles import Profile

from ..language_model import language_model, some_tokens


def moec(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return language_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return some_tokens(tmp_path_factory.mktemp("data") / "in.npz")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory, model: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    path = tmp_path_factory.mktemp("profile") / "p.moeprof"
    done = moec("profile", model, "--data", data, "-o", path, "--formats", "int8,int4/32")
    assert done.exit_code == 0
    assert "388 tokens in 1 batches, 2 layers of experts" in done.output
    return path


def test_a_plan_is_edited_and_compiled(model, profile, tmp_path):
    path, artifact = tmp_path / "plan.json", tmp_path / "m.moec"
    done = moec("plan", model, "--profile", profile, "--avg", 5, "-o", path)
    assert done.exit_code == 0
    plan = json.loads(path.read_text())
    notes = plan["notes"]
    assert notes["avg"] == 5 and plan["method"] == "gptq" and len(plan["layers"]) == 2
    assert notes["remarks"][-1].startswith("the plan was not judged against int4/32 for all: the profile holds no data")
    assert f"note: {notes['remarks'][-1]}" in done.output
    plan["layers"][0]["formats"]["down"][3] = "int8"
    path.write_text(json.dumps(plan))
    done = moec("compile", model, "-o", artifact, "--profile", profile, "--plan", path)
    assert done.exit_code == 0
    blocks = json.loads(moec("inspect", artifact, "--json").stdout)["artifacts"][0]["moe_blocks"]
    assert blocks[0]["formats"]["down"] == plan["layers"][0]["formats"]["down"]
    assert blocks[1]["formats"] == plan["layers"][1]["formats"]


def test_a_profile_says_what_it_is(profile):
    with contextlib.closing(Profile.read(profile)) as opened:
        assert repr(opened).startswith(f"<Profile {str(profile)!r}: ") and repr(opened).endswith(" layers after 'O2'>")


def test_a_profile_goes_to_all_passes_that_read_one(model, profile):
    done = moec("opt", model, "--profile", profile, "--passes", "prune-experts{keep=4},rescale-experts")
    assert done.exit_code == 0, done.output
    assert "rescale-experts: " in done.output
    assert "prune-experts: " in done.output and "keeps 4 of 8 experts" in done.output


@pytest.mark.parametrize(
    "passes, message",
    [
        ("O2", "no pass reads this profile"),
        ("O1,prune-experts{keep=4,profile=none,method=random}", "each names its own"),
    ],
)
def test_a_profile_that_no_pass_reads_is_refused(passes, message, model, profile, tmp_path):
    for command in (("compile", model, "-o", tmp_path / "m.moec"), ("opt", model)):
        done = moec(*command, "--profile", profile, "--passes", passes)
        assert isinstance(done.exception, MoecError)
        assert message in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_profile_that_cannot_be_read_is_refused_before_the_model_is(tmp_path):
    (tmp_path / "model.onnx").write_text("nothing that could be read")
    done = moec("opt", tmp_path / "model.onnx", "--profile", "none.moeprof", "--passes", "prune-experts{keep=4}")
    assert str(done.exception) == "none.moeprof: cannot be read: No such file or directory"


def test_no_plan_is_replaced(model, profile, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("{}")
    done = moec("plan", model, "--profile", profile, "--avg", 5, "-o", path)
    assert isinstance(done.exception, MoecError)
    assert "is there already; plans are edited by people" in str(done.exception)
    assert path.read_text() == "{}"


def test_an_average_that_cannot_be_had_leaves_nothing(model, profile, tmp_path):
    done = moec("plan", model, "--profile", profile, "--avg", 1.5, "-o", tmp_path / "plan.json")
    assert "avg=1.5 cannot be met with int8+int4/32; the least is 4" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_time_per_token_is_predicted_by_the_memory_that_is_measured(model, profile, tmp_path):
    def planned(name: str, *options: object) -> dict:
        chosen = ("--microseconds", 1, "--linears", *options)
        done = moec("plan", model, "--profile", profile, *chosen, "-o", tmp_path / name)
        assert done.exit_code == 0, done.exception
        return json.loads((tmp_path / name).read_text())

    reported = planned("told", "--gigabytes-per-second", 1000)
    assert reported["notes"]["microseconds"] == 1 and reported["notes"]["gigabytes_per_second"] == 1000
    assert {form for layer in reported["layers"] for forms in layer["formats"].values() for form in forms} == {"int8"}
    measured = planned("measured", "--microseconds", 10000)["notes"]["gigabytes_per_second"]
    assert 0.1 < measured < 10000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--avg", 3, "--microseconds", 5), "expected one of --avg, --megabytes and --microseconds"),
        (("--linears",), "formats are chosen within a budget; add --avg, --megabytes or --microseconds"),
        (("--avg", 3, "--gigabytes-per-second", 5), "--gigabytes-per-second needs --microseconds"),
        (("--microseconds", 5, "--gigabytes-per-second", 0), "gigabytes_per_second is 0; expected a number above 0"),
        (("--microseconds", 0, "--gigabytes-per-second", 5), "microseconds is 0; expected a number above 0"),
        (("--microseconds", 0.001, "--gigabytes-per-second", 5), "as predicted with 5 GB/s"),
    ],
)
def test_times_that_cannot_be_leave_nothing(model, options, message, profile, tmp_path):
    done = moec("plan", model, "--profile", profile, *options, "-o", tmp_path / "plan.json")
    assert isinstance(done.exception, MoecError) and message in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_placement_on_ranks_is_planned_from_a_profile(model, profile, tmp_path):
    path = tmp_path / "placement.json"
    printed = moec("plan", profile, "--ranks", 4, "--replicas", 4)
    assert printed.exit_code == 0, printed.exception
    placement = parse_plan(printed.stdout, "stdout")
    assert [(layer.experts, sum(map(len, layer.slots))) for layer in placement.layers] == [(8, 12)] * 2
    assert "note: predicted imbalance, the highest load of a rank over the mean: 1." in printed.stderr
    written = moec("plan", model, "--profile", profile, "--ranks", 4, "--replicas", 4, "-o", path)
    assert written.exit_code == 0 and "3, 3, 3, 3" in written.stdout
    assert [layer.slots for layer in read_plan(path).layers] == [layer.slots for layer in placement.layers]
    again = moec("plan", profile, "--ranks", 4, "-o", path)
    assert "is there already; plans are edited by people" in str(again.exception)


def test_experts_are_planned_by_number_without_a_profile(model):
    done = moec("plan", model, "--ranks", 3)
    assert [layer.slots for layer in parse_plan(done.stdout, "stdout").layers] == [((0, 1), (2, 3, 4), (5, 6, 7))] * 2
    assert "the loads of ranks are not known without a profile" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ranks", 4, "--replicas", 2), "a profile says which experts need them"),
        (("--avg", 3), "formats are chosen by what a profile says of their errors; add one"),
        (("--replicas", 2), "--nodes, --replicas, --method and --slack are about --ranks; add it"),
        (("--resident", "1 kB"), "model.onnx: 0.0 MiB are too few for its weights"),
    ],
)
def test_options_that_do_not_go_together_are_refused(model, options, message):
    done = moec("plan", model, *options)
    assert isinstance(done.exception, MoecError) and message in str(done.exception)


def check_followed(model: pathlib.Path, profile: pathlib.Path, path: pathlib.Path, data: pathlib.Path) -> None:
    """Compile a plan, and compare with the same formats in one process that has all weights in memory."""
    plan, artifact, plain = read_plan(path), path.parent / "m.moec", path.parent / "plain.moec"
    for rank in range(2):
        kept = [set(layer.resident[rank]) for layer in plan.layers]
        slots = [set(layer.slots[rank]) for layer in plan.layers]
        assert 0 < sum(map(len, kept)) < 10 and all(own <= every for own, every in zip(kept, slots, strict=True))
    done = moec("compile", model, "-o", artifact, "--plan", path, "--profile", profile)
    assert done.exit_code == 0, done.exception
    shown = parse_plan(moec("plan", artifact).stdout, "stdout")
    assert dataclasses.replace(plan, notes={}, transport=shown.transport) == shown
    blocks = json.loads(moec("inspect", artifact, "--json").stdout)["artifacts"][0]["moe_blocks"]
    assert not plan.has_formats or [block["formats"] for block in blocks] == [layer.formats for layer in plan.layers]
    layers = tuple(dataclasses.replace(layer, slots=(), resident=()) for layer in plan.layers)
    path.write_text(dataclasses.replace(plan, layers=layers, ranks=None, resident=None).text())
    profiled = ("--profile", profile) if plan.has_formats else ()
    assert moec("compile", model, "-o", plain, "--plan", path, *profiled).exit_code == 0
    expected, actual = load(plain), load(artifact)
    assert actual.placement.pages == "streamed" and expected.placement.pages == "mapped"
    for token in np.load(data)["ids"][0, :20]:
        inputs = {"ids": token[None, None]}
        assert actual.run(inputs)["y"].tobytes() == expected.run(inputs)["y"].tobytes()


@pytest.mark.nightly
def test_one_plan_is_all_of_a_compilation(model, profile, data, tmp_path):
    path = tmp_path / "plan.json"
    listed = ("--ranks", 2, "--replicas", 2, "--resident", "250KiB", "--profile", profile)
    done = moec("plan", model, *listed, "-o", path)
    assert done.exit_code == 0, done.exception
    assert "predicted: " in done.stderr and "of the experts that tokens choose are in memory" in done.stderr
    plan = read_plan(path)
    assert not plan.has_formats and plan.ranks == 2 and plan.resident == 250 << 10
    check_followed(model, profile, path, data)


@pytest.mark.nightly
def test_a_plan_of_all_tiers_is_compiled(data, tmp_path):
    model, profile, path = language_model(tmp_path / "m.onnx", 256, 128), tmp_path / "p.moeprof", tmp_path / "plan.json"
    assert moec("profile", model, "--data", data, "-o", profile, "--formats", "int8,int4/32").exit_code == 0
    listed = ("--ranks", 2, "--replicas", 2, "--resident", "700KiB", "--avg", 5, "--profile", profile)
    done = moec("plan", model, *listed, "-o", path)
    assert done.exit_code == 0, done.exception
    assert read_plan(path).has_formats
    check_followed(model, profile, path, data)


def test_an_artifact_follows_another_plan_without_compiling(model, profile, tmp_path):
    artifact, path = tmp_path / "m.moec", tmp_path / "plan.json"
    assert moec("compile", model, "-o", artifact, "--ranks", 2).exit_code == 0
    assert moec("plan", artifact, "--ranks", 4, "--resident", "200KiB", "--profile", profile, "-o", path).exit_code == 0
    done = moec("place", artifact, "--plan", path)
    assert "2 layers are placed on 4 ranks" in done.output and "at most 204800 bytes of memory" in done.output
    moved = parse_plan(moec("plan", artifact).stdout, "stdout")
    assert moved.layers == read_plan(path).layers
    path.write_text(dataclasses.replace(moved, resident=1000).text())
    done = moec("place", artifact, "--plan", path)
    assert isinstance(done.exception, MoecError) and f"{path}, rank 0: 0.0 MiB are too few" in str(done.exception)
    for options in ((), ("--plan", path, "--ranks", 2), ("--plan", path, "--profile", profile)):
        assert isinstance(moec("place", artifact, *options).exception, MoecError)
    assert parse_plan(moec("plan", artifact).stdout, "stdout") == moved


@pytest.mark.nightly
def test_a_plan_by_a_profile_of_formats_with_zero_points_is_compiled(model, data, tmp_path):
    profile, path, artifact = tmp_path / "p.moeprof", tmp_path / "plan.json", tmp_path / "m.moec"
    listed = ("--formats", "int4/32z,int3/32z,int2/32z")
    done = moec("profile", model, "--data", data, "-o", profile, *listed)
    assert done.exit_code == 0, done.exception
    options = ("--profile", profile, "--avg", 3, "--linears", "-o", path)
    done = moec("plan", model, *options)
    assert done.exit_code == 0, done.exception
    done = moec("compile", model, "-o", artifact, "--plan", path, "--profile", profile)
    assert done.exit_code == 0, done.exception
    blocks = json.loads(moec("inspect", artifact, "--json").stdout)["artifacts"][0]["moe_blocks"]
    actual = {form for block in blocks for formats in block["formats"].values() for form in formats}
    assert len(actual) > 1 and actual <= {"int4/32z", "int3/32z", "int2/32z"}
