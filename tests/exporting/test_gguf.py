"""GGUF files after passes: what changes, what stays byte for byte, what is refused. tools/gguf_models.py compares such
files with llama.cpp."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.exporting.driver import Export, export
from moec.frontend.gguf import import_file
from moec.frontend.gguf.file.formats import decoded
from moec.frontend.gguf.file.reader import GgufFile, read_file
from moec.ir.dialect import has_experts
from moec.ir.interpreter import run
from moec.passes import pipeline
from moec.passes.framework.shorthand import with_formats
from moec.placing.plan import ExpertPlan, LayerPlan
from moec.profiles.keys import key_of

from ..command import moec
from ..frontend.gguf import tiny_models
from ..frontend.gguf.gguf_files import stored, write_file
from ..frontend.gguf.tiny_models import IDS, MODELS, WIDE, Tiny, write_model

EXPERTS = 12
PRUNE = "prune-experts{keep=0.75,method=random}"
HAVE_EXPERTS = [name for name, (_, _, options) in MODELS.items() if "moe" in name or options.get("moe")]
HAVE_EXPERTS.remove("gemma4 with experts")
HAVE_EXPERTS += ["olmoe", "gpt-oss", "dots1", "dbrx", "deepseek2", "deepseek2 of keys and values"]
HAVE_EXPERTS += ["qwen3next", "minimax-m2", "llama4"]


def model(name: str, path: Path, kind: str = "F32", **sizes: int) -> Path:
    """Write a tiny model with twelve experts a layer."""
    moe = {"expert_count": EXPERTS, "expert_used_count": 2}
    with mock.patch.multiple(tiny_models, **{"EXPERTS": EXPERTS, "MOE": moe, **sizes}):
        return write_model(name, path, kind)


def exported(source: Path, **options: Any) -> GgufFile:
    return read_file(written(source, **options).path)


def written(source: Path, **options: Any) -> Export:
    return export(source, source.with_name("out.gguf"), **options)


def logits(path: Path, passes: str = "") -> np.ndarray:
    graph = import_file(path)
    pipeline.run(graph, pipeline.parse(passes))
    return run(graph, {"input_ids": IDS[None]})["logits"]


def check_pruned(name: str, folder: Path) -> None:
    source = model(name, folder / "model.gguf")
    result = written(source, passes=f"O2,{PRUNE}")
    assert {part.written_as for part in result.parts} == {"layers of 9 experts in F32"}
    np.testing.assert_array_equal(logits(result.path), logits(source, f"infer-shapes,{PRUNE}"))
    before, after = read_file(source), read_file(result.path)
    key = f"{before.metadata['general.architecture']}.expert_count"
    assert (before.metadata[key], after.metadata[key]) == (EXPERTS, 9)
    assert list(after.tensors) == list(before.tensors)


@pytest.mark.parametrize("name", ["gpt-oss", "deepseek2", "qwen2moe"])
def test_pruned(name: str, tmp_path: Path) -> None:
    check_pruned(name, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("name", HAVE_EXPERTS)
def test_every_architecture_pruned(name: str, tmp_path: Path) -> None:
    check_pruned(name, tmp_path)


def test_experts_with_a_factor_each_are_not_pruned(tmp_path: Path) -> None:
    source = model("gemma4 with experts", tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match=r"blk\.0\.experts: the weights are changed between moec\.Route"):
        exported(source, passes=f"O2,{PRUNE}")


def test_nothing_changes_without_a_pass_that_changes_the_function(tmp_path: Path) -> None:
    source = model("glm4moe", tmp_path / "model.gguf", "Q4_0")
    assert exported(source).path.read_bytes() == source.read_bytes()


def test_an_expert_that_no_token_reaches_stays(tmp_path: Path) -> None:
    architecture, make, options = MODELS["dots1"]
    tiny = Tiny(architecture, "F32")
    make(tiny, **options)
    tiny.tensors["blk.1.exp_probs_b.bias"] = stored(np.array([0, 0, 0, 0, 0, -np.inf]))
    source = tiny.write(tmp_path / "model.gguf")
    assert exported(source, passes="O2").path.read_bytes() == source.read_bytes()


def test_entries_of_metadata_and_other_tensors_stay_byte_for_byte(tmp_path: Path) -> None:
    source = model("mixtral", tmp_path / "model.gguf", "Q8_0")
    before, after = read_file(source), exported(source, passes=PRUNE)
    changed = [key for key, entry in before.entries.items() if entry.tobytes() != after.entries[key].tobytes()]
    assert changed == ["llama.expert_count"] and list(after.entries) == list(before.entries)
    for name, tensor in before.tensors.items():
        now = after.tensors[name]
        assert now.kind == tensor.kind
        if "_exps" not in name and "gate_inp" not in name:
            assert now.blocks.tobytes() == tensor.blocks.tobytes(), name
        else:
            rows = [row.tobytes() for row in tensor.blocks]
            assert now.shape[0] == 9 and all(row.tobytes() in rows for row in now.blocks), name


FORMATS = [
    ("int4/32", "Q4_0"),
    ("bf16", "BF16"),
    ("int4/32m", "Q4_1"),
    ("int4/32/256m", "Q4_K"),
    ("int5/32/256m", "Q5_K"),
]
FORMATS += [
    ("int6/16/256", "Q6_K"),
    ("int2/16/256m", "Q2_K"),
    ("int3/16/256", "Q3_K"),
    ("iq4/32", "IQ4_NL"),
    ("iq4/32/256", "IQ4_XS"),
]


@pytest.mark.parametrize(
    ("form", "kind"), [FORMATS[0], *(pytest.param(*f, marks=pytest.mark.nightly) for f in FORMATS[1:])]
)
def test_experts_in_another_format(form: str, kind: str, tmp_path: Path) -> None:
    sizes = {"D": 64, "HEAD": 16} if kind == "Q4_0" else WIDE
    source = model("mixtral", tmp_path / "model.gguf", **sizes)
    after = exported(source, experts=form)
    assert {tensor.kind for name, tensor in after.tensors.items() if "_exps" in name} == {kind}
    assert {tensor.kind for name, tensor in after.tensors.items() if "_exps" not in name} == {"F32"}
    graph = import_file(source)
    pipeline.run(graph, pipeline.parse(with_formats("", experts=form)))
    for node in graph.graph:
        node.attributes.pop("arithmetic", None)
    np.testing.assert_array_equal(logits(after.path), run(graph, {"input_ids": IDS[None]})["logits"])


def test_a_plan_gives_layers_and_projections_types_of_their_own(tmp_path: Path) -> None:
    source = model("mixtral", tmp_path / "model.gguf", D=64, HEAD=16)
    nodes = [node for node in import_file(source).graph if has_experts(node)]
    formats = [{"gate": "int4/32", "up": "int4/32", "down": "int8/32"}, {"down": "int4/32z"}]
    alike = [{name: [form] * EXPERTS for name, form in layer.items()} for layer in formats]
    plan = tmp_path / "plan"
    layers = tuple(LayerPlan(key_of(n), "layer", EXPERTS, f) for n, f in zip(nodes, alike, strict=True))
    plan.write_text(ExpertPlan(layers).text())
    passes = f"assign-bits{{plan={plan},method=rtn}}"
    after = exported(source, passes=passes)
    kinds = [{part: after.tensors[f"blk.{i}.ffn_{part}_exps.weight"].kind for part in ("gate", "down")} for i in (0, 1)]
    assert kinds == [{"gate": "Q4_0", "down": "Q8_0"}, {"gate": "F32", "down": "Q4_1"}]
    before = decoded(read_file(source).tensors["blk.1.ffn_down_exps.weight"])
    difference = np.abs(decoded(after.tensors["blk.1.ffn_down_exps.weight"]) - before)
    assert 0 < difference.max() <= np.abs(before).max() * (1 / 15 + 1 / 1024)
    alike[0]["gate"][3] = "int8/32"
    plan.write_text(ExpertPlan((LayerPlan(key_of(nodes[0]), "layer", EXPERTS, alike[0]),)).text())
    with pytest.raises(UnsupportedError, match=r"formats int4/32, int8/32; .* as by assign-bits\{per_layer=true\}"):
        export(source, tmp_path / "mixed.gguf", passes=passes)


def test_an_embedding_that_is_the_output_matrix_too_stays_as_it_is(tmp_path: Path) -> None:
    source = model("llama 3", tmp_path / "model.gguf", D=64, HEAD=16, HEADS=4)
    before, after = read_file(source), exported(source, passes="quantize-linears{format=int8,group=32,minimum=0}")
    assert after.tensors["token_embd.weight"].blocks.tobytes() == before.tensors["token_embd.weight"].blocks.tobytes()
    assert after.tensors["output.weight"].kind == "Q8_0" and "output.weight" not in before.tensors
    difference = decoded(after.tensors["output.weight"]) - decoded(before.tensors["token_embd.weight"])
    assert 0 < np.abs(difference).max() < 0.02


def test_layers_that_predict_further_tokens_go_when_counts_change(tmp_path: Path) -> None:
    source = model("glm4moe", tmp_path / "model.gguf")
    file = read_file(source)
    tensors = {name: stored(decoded(tensor)) for name, tensor in file.tensors.items()}
    tensors["blk.2.ffn_up_exps.weight"] = stored(np.ones((EXPERTS, 2, 2)))
    write_file(source, file.metadata | {"glm4moe.block_count": 3, "glm4moe.nextn_predict_layers": 1}, tensors)
    result = written(source, passes=PRUNE)
    after = read_file(result.path)
    assert "blk.2.ffn_up_exps.weight" not in after.tensors
    assert (after.metadata["glm4moe.block_count"], after.metadata["glm4moe.nextn_predict_layers"]) == (2, 0)
    assert any("predict further tokens" in remark.message for remark in result.remarks)
    result.path.unlink()
    assert "blk.2.ffn_up_exps.weight" in exported(source).tensors


def test_the_command(tmp_path: Path) -> None:
    source, output = model("mixtral", tmp_path / "model.gguf"), tmp_path / "small.gguf"
    result = moec("export", source, "-o", output, "--passes", f"O2,{PRUNE}")
    assert (result.returncode, result.stdout) == (0, f"{output}: for gguf, 2 layers of 9 experts in F32\n")
    assert read_file(output).metadata["llama.expert_count"] == 9
    again = moec("export", source, "-o", output)
    assert again.returncode == 2 and "is never replaced; remove it or choose another path" in again.stderr


def test_parts_become_one_file(tmp_path: Path) -> None:
    file = read_file(model("mixtral", tmp_path / "model.gguf"))
    tensors = [(name, stored(decoded(tensor))) for name, tensor in file.tensors.items()]
    split = {"split.count": 2, "split.tensors.count": len(tensors)}
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    write_file(first, file.metadata | split | {"split.no": 0}, dict(tensors[:5]))
    write_file(second, split | {"split.no": 1}, dict(tensors[5:]))
    after = exported(first, passes=PRUNE)
    assert list(after.tensors) == list(file.tensors) and not any(key.startswith("split") for key in after.metadata)
    second.unlink()
    with pytest.raises(MoecError, match=r"m-00002-of-00002\.gguf: cannot be read"):
        export(first, tmp_path / "again.gguf")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixtral", {"passes": "prune-experts{keep=8,method=random,layers=1}"}, "one number of experts for all layers"),
        ("mixtral", {"experts": "int8/32z"}, r"'blk.0.ffn_up_exps.weight': would be int8.*z, .* nearest are int4/32"),
        ("mixtral", {"experts": "nvfp4"}, r"'blk.0.ffn_up_exps.weight': would be nvfp4, which GGUF does not have"),
        ("mixtral", {"passes": "O3"}, "round-activations: changes how a model computes, not its weights"),
        (
            "mixtral",
            {"passes": "quantize-linears{format=int8,group=32,minimum=0,routers=true}"},
            "new rows of the router are not known",
        ),
        ("mixtral", {"passes": "prune-experts{keep=1.0,method=random}"}, "the passes change none of its weights"),
        ("llama 3", {"passes": PRUNE}, "has no experts, and the passes change none of its other weights"),
        ("mixtral", {"tokenizer": "."}, "a GGUF file keeps the one that it has"),
        ("deepseek2", {"passes": "prune-experts{keep=3,method=random}"}, "would have 3 experts in 3 groups"),
    ],
)
def test_what_a_file_cannot_say_is_refused(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = model(name, tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match=message) as caught:
        written(source, **options)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_tensor_that_others_belong_to_does_not_change(tmp_path: Path) -> None:
    source = model("mixtral", tmp_path / "model.gguf", "NVFP4", **WIDE)
    with pytest.raises(UnsupportedError, match=r"'blk.0.ffn_.*_exps.weight': is NVFP4, whose floats are in a tensor"):
        written(source, passes=PRUNE)


def test_nothing_is_replaced(tmp_path: Path) -> None:
    source = model("mixtral", tmp_path / "model.gguf")
    content = source.read_bytes()
    with pytest.raises(MoecError, match="is the model that is exported"):
        export(source, source, passes=PRUNE)
    assert source.read_bytes() == content and list(tmp_path.iterdir()) == [source]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    source = model("mixtral", tmp_path / "model.gguf")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(MoecError, match="was not written: File too large"):
            written(source, passes=PRUNE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [source]


def test_only_a_gguf_file_becomes_one(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="only GGUF files become GGUF files"):
        export(tmp_path / "model.onnx", tmp_path / "out.gguf")
