"""Inputs in ``.npz`` files, profiles, and the files of layers that people edit: plans and sensitivities."""

from __future__ import annotations

import json
import pathlib
import random

from ...language_model import language_model, some_tokens
from ..json_damage import damage
from .byte_damage import damage_file
from .judge import run
from .kinds import Commands, InputKind
from .zip_damage import damage_zip

_MODEL, _ARTIFACT, _INPUTS, _PROFILE = "model.onnx", "model.moec", "inputs.npz", "model.moeprof"
_PLAN, _WEIGHTS = "plan.json", "weights.json"


def _prepare(folder: pathlib.Path, *further: str) -> None:
    model, inputs = language_model(folder / _MODEL), some_tokens(folder / _INPUTS)
    commands = {
        _ARTIFACT: ["compile", str(model), "-o", str(folder / _ARTIFACT)],
        _PROFILE: ["profile", str(model), "--data", str(inputs), "-o", str(folder / _PROFILE)],
        _PLAN: ["plan", str(model), "--profile", str(folder / _PROFILE), "--avg", "5", "-o", str(folder / _PLAN)],
    }
    for name in further:
        status, message = run(commands[name])
        assert status == "pass", message


def _prepare_plan(folder: pathlib.Path) -> None:
    _prepare(folder, _PROFILE, _PLAN)
    layers = [{"layer": layer["layer"], "name": layer["name"], "weight": 1.5} for layer in _layers(folder)]
    (folder / _WEIGHTS).write_text(json.dumps({"version": 1, "layers": layers}))


def _layers(folder: pathlib.Path) -> list[dict[str, str]]:
    return json.loads((folder / _PLAN).read_text())["layers"]


def _damage_zip(folder: pathlib.Path, rng: random.Random, name: str) -> str:
    return damage_zip(folder / name, rng) if rng.random() < 0.9 else damage_file(folder / name, rng)


def _damage_profile(folder: pathlib.Path, rng: random.Random) -> str:
    if rng.random() < 0.6:
        return _damage_zip(folder, rng, _PROFILE)
    import zipfile

    from .zip_damage import write_zip

    with zipfile.ZipFile(folder / _PROFILE) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["profile.json"], reported = damage(json.loads(entries["profile.json"]), rng)
    write_zip(folder / _PROFILE, entries)
    return f"profile.json: {reported}"


def _damage_plan(folder: pathlib.Path, rng: random.Random) -> str:
    path = folder / rng.choice([_PLAN, _PLAN, _WEIGHTS])
    if rng.random() < 0.15:
        return damage_file(path, rng)
    data, reported = damage(json.loads(path.read_text()), rng)
    path.write_bytes(data)
    return f"{path.name}: {reported}"


def _npz_commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    model, artifact, inputs = (str(folder / name) for name in (_MODEL, _ARTIFACT, _INPUTS))
    others = [
        ["verify", model, artifact, "--inputs", inputs],
        ["evaluate", artifact, "--data", inputs],
        ["evaluate", artifact, "--data", inputs, "--metric", "loss"],
        ["evaluate", artifact, artifact, "--data", inputs, "--labels", inputs, "--metric", "top1"],
    ]
    further = rng.choice(others) if rng.random() < 0.97 else _profiled(model, inputs, folder)
    return [["run", artifact, "--inputs", inputs, "--outputs", str(folder / "out.npz")], further]


def _profiled(model: str, inputs: str, folder: pathlib.Path) -> list[str]:
    return ["profile", model, "--data", inputs, "-o", str(folder / "new.moeprof"), "--formats", "int8"]


def _profile_commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    model, profile = str(folder / _MODEL), str(folder / _PROFILE)
    passes = (
        *("prune-experts{experts=6,profile=P}", "merge-experts{experts=6,profile=P}", "skip-experts{profile=P}"),
        *("rescale-experts{profile=P}", "tune-router{profile=P}", "low-rank-experts{rank=8,profile=P}"),
        *(
            "prune-hidden-units{units=32,profile=P}",
            "assign-bits{avg=4,profile=P}",
            "assign-bits{avg=4,profile=P,method=rtn}",
        ),
        *("quantize-experts{format=int4/32,method=gptq,profile=P}", "stream-experts{profile=P}"),
        "quantize-experts{format=int4/32,method=awq,profile=P}",
    )
    chosen = rng.choice(passes).replace("P", profile)
    further = [["opt", model, "--passes", f"O2,{chosen}"]]
    if rng.random() < 0.05:
        further = [[*_profiled(model, str(folder / _INPUTS), folder), "--merge", profile]]
    return [["plan", model, "--profile", profile, "--avg", "5", "-o", str(folder / "new.json")], *further]


def _plan_commands(folder: pathlib.Path, rng: random.Random) -> Commands:
    model, plan, weights, profile = (str(folder / name) for name in (_MODEL, _PLAN, _WEIGHTS, _PROFILE))
    return [
        ["opt", model, "--passes", f"O2,assign-bits{{plan={plan},method=rtn}}"],
        ["opt", model, "--passes", f"O2,assign-bits{{avg=4,profile={profile},sensitivities={weights},method=rtn}}"],
    ]


KINDS = {
    "npz": InputKind(
        lambda folder: _prepare(folder, _ARTIFACT), lambda folder, rng: _damage_zip(folder, rng, _INPUTS), _npz_commands
    ),
    "moeprof": InputKind(lambda folder: _prepare(folder, _PROFILE), _damage_profile, _profile_commands),
    "plan": InputKind(_prepare_plan, _damage_plan, _plan_commands),
}
