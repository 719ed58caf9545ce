"""A tiny program, built straight with TVM so that these tests need no compiler of ours.

x float32[rows,4], scale bfloat16[4], ids int64[rows,width] and one weight w float32[4] give
y = (x + w) * float32(scale), the untouched ids, and the weight w itself.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from moec.artifacts.writer import Context, Stage, write_artifact
from moec.common.specs import TensorSpec
from moec.passes.framework.base import Unraised
from moec.passes.framework.evidence import Attempt, DecisionRecord, Evidence, RaisedBlock, SideRecord, TrialRecord
from moec.runtime.draft_limit import MOST_DRAFTS, DraftLimit
from moec.runtime.session import Session
from moec.targets.base import Candidate, KernelRecord, Program, Weight

WEIGHT = np.arange(4, dtype=np.float32)
EVIDENCE = Evidence(
    None,
    1e-5,
    "ties",
    (TrialRecord("ties", 1, 4, None, 1e-5),),
    (DecisionRecord("relu", "Relu", (SideRecord("input 0 < 0", "trial", "ties"),)),),
)
ATTEMPT = Attempt("probing", "it differs", "router softmax", 3, EVIDENCE)


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> Program:
    return Program(
        target="cpu:test",
        inputs=[
            TensorSpec("x", "float32", ("rows", 4)),
            TensorSpec("scale", "bfloat16", (4,)),
            TensorSpec("ids", "int64", ("rows", "width")),
        ],
        outputs=[
            TensorSpec("y", "float32", ("rows", 4)),
            TensorSpec("ids_out", "int64", ("rows", "width")),
            TensorSpec("w_out", "float32", (4,)),
        ],
        objects=_build(tmp_path_factory.mktemp("build")),
        weights=[Weight("w", (4,), "float32", WEIGHT.copy)],
        kernels=[
            KernelRecord(
                "add_multiply",
                "Add",
                ["add", "multiply"],
                [Candidate("fused", True, "both are elementwise", chosen=True), Candidate("gemm", False, "no product")],
                sources={"tir": "the tir", "asm": "the assembly"},
            )
        ],
    )


@pytest.fixture(scope="session")
def context() -> Context:
    block = {"name": "moe", "op": "moec.MoE", "num_experts": 4, "top_k": 2, "router": "softmax", "activation": "silu"}
    unknown = ("gate_layout", "dtype", "formulation", "block", "experts", "row_bytes")
    return Context(
        moec_version="0.0.0",
        threads=None,
        moe_blocks=[{**block, "hidden_size": 8, "intermediate_size": None, **dict.fromkeys(unknown), "formats": {}}],
        input_limits={"ids": 7},
        input_sizes={"total": "past + rows"},
        counted_inputs=["x"],
        guards=[],
        states=[],
        stages=[Stage("import", "the imported model"), Stage("raise-moe", None)],
        losses=[
            {
                "pass_name": "quantize-experts",
                "layer": "layer_0",
                "formats": {"up": ["int4/128", "int8"], "down": ["int8"]},
                "arithmetic": "int8",
                "weight_error": 0.1,
                "output_error": 0.18,
            }
        ],
        raised=[dataclasses.asdict(RaisedBlock("moe", "probing", "router softmax", EVIDENCE))],
        unraised=[dataclasses.asdict(Unraised("top", "it differs", attempts=(ATTEMPT,)))],
        remarks=[{"pass_name": "raise-moe", "subject": "block 1", "message": "left as it was", "severity": "warning"}],
        provenance={"source": {"kind": "test"}},
    )


@pytest.fixture(scope="session")
def pristine_artifact(program, context, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("artifact") / "model.moec"
    write_artifact(path, program, context)
    return path


@pytest.fixture
def artifact_path(pristine_artifact, tmp_path) -> pathlib.Path:
    """Copy the artifact, so that the test may damage it."""
    return pathlib.Path(shutil.copytree(pristine_artifact, tmp_path / "model.moec"))


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    import ml_dtypes

    return {
        "x": np.arange(12, dtype=np.float32).reshape(3, 4),
        "scale": np.array([1, 2, 0.5, -1], ml_dtypes.bfloat16),
        "ids": np.arange(6).reshape(3, 2),
    }


def _build(folder: pathlib.Path) -> dict[str, bytes]:
    import tvm
    from tvm import relax

    rows, width = tvm.tirx.Var("rows", "int64"), tvm.tirx.Var("width", "int64")
    x = relax.Var("x", relax.TensorType((rows, 4), "float32"))
    scale = relax.Var("scale", relax.TensorType((4,), "bfloat16"))
    ids = relax.Var("ids", relax.TensorType((rows, width), "int64"))
    w = relax.Var("w", relax.TensorType((4,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, scale, ids, w]):
        with builder.dataflow():
            y = builder.emit(relax.op.multiply(relax.op.add(x, w), relax.op.astype(scale, "float32")))
            result = builder.emit_output(relax.Tuple([y, ids, w]))
        builder.emit_func_output(result)
    target = tvm.target.Target({"kind": "llvm"})
    with target:
        module = relax.get_pipeline("zero")(builder.get())
    executable = tvm.compile(module, target=target)

    def keep_objects(output, files, **_options):
        for file in files:
            shutil.copy(file, folder)
        return files

    keep_objects.object_format = "o"
    executable.export_library(str(folder / "library"), fcompile=keep_objects)
    return {path.name: path.read_bytes() for path in folder.glob("*.o")}


@pytest.fixture(params=[1, 3, MOST_DRAFTS])
def always(request, monkeypatch):
    """Draft as many tokens in each step, whatever it costs."""
    monkeypatch.setattr(DraftLimit, "count", lambda limit, kind: min(request.param, limit._most))


@pytest.fixture
def computed(monkeypatch):
    """Numbers of tokens of each run."""
    counts, outputs = [], Session._outputs

    def counting(session, ids, *arguments):
        counts.append(ids.shape[1])
        return outputs(session, ids, *arguments)

    monkeypatch.setattr(Session, "_outputs", counting)
    return counts
