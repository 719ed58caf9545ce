"""Profiles against sums computed from the model's own routing, one token at a time."""

from __future__ import annotations

import itertools
import pathlib
import resource

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import MoecError
from moec.compiling import compiler
from moec.ir import dialect, semantics
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RouteSpec
from moec.ir.expert_outputs import expert_output
from moec.ir.expert_weights import ExpertWeights
from moec.passes import pipeline
from moec.profiles import Profile
from moec.profiles.keys import keep_key, key_of, measurable
from moec.profiles.measures import BINS
from moec.tools.profiling import driver, profile
from moec.tools.profiling.sums import ExpertsSums, KeptRows
from moec.tools.profiling.threads import measuring_threads

from ...executors import Pickling
from ...language_model import language_model
from ...passes.stored_weights import D, E, experts_model
from ...products import thinned


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return language_model(tmp_path_factory.mktemp("model") / "model.onnx")


def prepared(model: pathlib.Path) -> ir.Model:
    graph = compiler.import_model(model)
    pipeline.run(graph, pipeline.parse("O2"))
    return graph


def measured(model: pathlib.Path, folder: pathlib.Path, ids: np.ndarray, name: str = "p", **options) -> Profile:
    np.savez(folder / f"{name}.npz", ids=ids)
    profile(model, [folder / f"{name}.npz"], folder / f"{name}.moeprof", **options)
    return Profile.read(folder / f"{name}.moeprof")


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 96, (3, 11))


@pytest.fixture(scope="module")
def made(model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray) -> Profile:
    return measured(model, tmp_path_factory.mktemp("profile"), ids)


@pytest.fixture(scope="module")
def reads(model: pathlib.Path, ids: np.ndarray) -> list[tuple[ir.Node, np.ndarray, np.ndarray]]:
    """List layers with x and logits, as a second compilation computes them."""
    graph = prepared(model)
    nodes = list(measurable(graph.graph))
    for position, node in enumerate(nodes):
        for name in ("x", "logits"):
            value = dialect.inputs_of(node)[name]
            copy = ir.node("Identity", [value])
            copy.outputs[0].name, copy.outputs[0].type = f"{name} of {position}", value.type
            copy.outputs[0].shape = value.shape
            graph.graph.append(copy)
            graph.graph.outputs.append(copy.outputs[0])
    graph.graph.opset_imports["moec"] = 1
    outputs = moec.compile(graph, passes="").run({"ids": ids})
    return [(node, outputs[f"x of {at}"], outputs[f"logits of {at}"]) for at, node in enumerate(nodes)]


def test_counts_weights_pairs_and_transitions(made, reads):
    chosen = []
    for node, _, logits in reads:
        actual = made.experts(node)
        gates, experts = semantics.route(dialect.spec_of(node, RouteSpec), logits)
        count, gate_sum, pairs = np.zeros(8), np.zeros(8), np.zeros((8, 8))
        for own, weights in zip(experts, gates, strict=True):
            for expert, gate in zip(own, weights, strict=True):
                count[expert] += 1
                gate_sum[expert] += gate
                for other in own:
                    pairs[expert, other] += 1
        chosen.append(experts)
        assert actual.count.tolist() == count.tolist()
        assert actual.array("pairs").tolist() == pairs.tolist()
        recorded = actual.recorded()
        assert recorded is not None and np.sort(recorded).tolist() == np.sort(experts).tolist()
        np.testing.assert_allclose(actual.array("gate_sum"), gate_sum, rtol=1e-5)
        assert actual.array("gate_histogram").sum(axis=1).tolist() == count.tolist()
        assert actual.array("ratio_histogram")[0].tolist() == [0] * (BINS - 1) + [len(logits)]
    following = np.zeros((8, 8))
    for first, second in zip(*chosen, strict=True):
        for one in first:
            following[one, second] += 1
    layer = made.experts(reads[0][0])
    assert layer.array("following").tolist() == following.tolist()
    assert layer.next_key == made.experts(reads[1][0]).key


def test_moments_norms_and_rows(made, reads):
    for node, x, logits in reads:
        actual = made.experts(node)
        gates, experts = semantics.route(dialect.spec_of(node, RouteSpec), logits)
        inputs = dialect.inputs_of(node)
        weights = {name: None if value is None else value.const_value.numpy() for name, value in inputs.items()
                   if name in dialect.EXPERT_WEIGHTS}  # fmt: skip
        spec = dialect.spec_of(node, dialect.ExpertsSpec)
        for expert in range(8):
            tokens, slots = np.nonzero(experts == expert)
            rows, gate = x[tokens], gates[tokens, slots]
            own = {name: None if one is None else one[expert] for name, one in weights.items()}
            hidden = semantics.activated(spec, *semantics.projections_in(spec, rows, own))
            y = hidden @ (own["down"] if spec.down_transposed else own["down"].T)
            share = gate / gates[tokens].sum(axis=1)
            np.testing.assert_allclose(actual.moment_in(expert), (rows * gate[:, None]).T @ rows, atol=1e-4)
            np.testing.assert_allclose(actual.moment_hidden(expert), (hidden * gate[:, None]).T @ hidden, atol=1e-4)
            norms = np.linalg.norm(y, axis=1)
            np.testing.assert_allclose(actual.array("output_norm")[expert], norms.sum(), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(actual.array("saliency")[expert], share @ norms, rtol=1e-4, atol=1e-6)
            assert np.array_equal(actual.rows(expert), rows)
            assert np.array_equal(actual.row_gates(expert), gate)


@pytest.mark.parametrize(
    "spec", [ExpertsSpec(), ExpertsSpec("relu", "none", weight_on_input=True), ExpertsSpec(identity_experts=2)]
)
def test_the_sample_holds_what_the_layer_returns(spec, tmp_path):
    """Pairs are dropped, too, and some experts return their input."""
    node, random = experts_model(spec).graph.node(0), np.random.default_rng(0)
    x, logits = (random.normal(size=(40, size)).astype(np.float32) for size in (D, E + spec.identity_experts))
    gates, ids = semantics.route(RouteSpec(3, threshold=0.15), logits)
    sums = ExpertsSums(node, 3, tmp_path, "layer", moments=False)
    sums.add(x, gates, ids)
    weights = [dialect.inputs_of(node)[name] for name in EXPERT_WEIGHTS]
    expected = semantics.experts(
        spec, x, gates, ids, *(None if value is None else value.const_value.numpy() for value in weights)
    )
    assert (ids < 0).any()
    actual = dict(sums.arrays([]))
    np.testing.assert_array_equal(actual["sample"], x)
    np.testing.assert_allclose(actual["sample_output"], expected, rtol=1e-4, atol=1e-5)


def test_fewer_bits_cost_more_and_only_where_tokens_came(made):
    for layer in made.all_experts():
        errors = [layer.error(form) for form in made.head.formats]
        reached = layer.count > 0
        assert len(made.head.formats) == 4
        assert layer.parts == ("gate", "up", "down")
        for finer, coarser in itertools.pairwise(errors):
            assert (finer.sum(axis=0) < coarser.sum(axis=0)).all()
        assert all((error[reached] > 0).all() and not error[~reached].any() for error in errors)


def test_profiles_of_two_halves_merge_to_that_of_both(model, made, ids, tmp_path):
    first = measured(model, tmp_path, ids[:1], "first")
    both = measured(model, tmp_path, ids[1:], "both", merge_with=[first.path])
    assert [piece["tokens"] for piece in both.head.data] == [22, 11]
    for all_expert, other in zip(both.all_experts(), made.all_experts(), strict=True):
        assert all_expert.tokens == other.tokens == ids.size
        assert all_expert.count.tolist() == other.count.tolist()
        assert all_expert.array("pairs").tolist() == other.array("pairs").tolist()
        for expert in range(8):
            np.testing.assert_allclose(all_expert.moment_in(expert), other.moment_in(expert), atol=1e-4)
            assert len(all_expert.rows(expert)) == len(all_expert.row_gates(expert)) <= max(all_expert.count)


def test_a_layer_is_known_after_its_weights_change_only_if_that_was_noted(model, made):
    node = next(measurable(prepared(model).graph))
    changed = ir.tensor(np.ones((8, 64, 48), np.float32))
    keep_key(node)
    dialect.inputs_of(node)["down"].const_value = changed
    assert made.experts(node).tokens == 33
    node.metadata_props.clear()
    with pytest.raises(MoecError, match=r"nothing was measured of its weights.*after the passes 'O2'.*'model.onnx'"):
        made.experts(node)
    assert key_of(node) not in {layer.key for layer in made.head.layers}


def test_without_moments_and_formats(model, ids, tmp_path):
    small = measured(model, tmp_path, ids, moments=False, formats="")
    (layer, _) = small.all_experts()
    assert layer.error("int8") is None
    with pytest.raises(MoecError, match="lacks 'moment_in/0'; make it anew, with second moments"):
        layer.moment_in(0)


@thinned(
    ("arrays", "message"),
    [
        (
            {"other": np.zeros((1, 4), np.int64)},
            r"bad.npz: has no array 'ids'; expected the model's inputs: \['ids'\]",
        ),
        ({"ids": np.zeros(4, np.int64)}, r"bad.npz: the arrays have the shapes .*ids int64\[batch,seq\] is \[4\]"),
        ({"ids": np.zeros((1, 4), np.float32)}, r"bad.npz: the input 'ids' is float32; expected int64: convert it"),
        ({"ids": np.full((1, 4), 96)}, r"bad.npz: the input 'ids' holds 96 to 96; expected 0 to 95"),
    ],
    3,
)
def test_data_that_does_not_fit_leaves_no_profile(model, arrays, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(MoecError, match=message):
        profile(model, [tmp_path / "bad.npz"], tmp_path / "p.moeprof")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]


def test_data_without_a_token_leaves_no_profile(model, tmp_path):
    for ids in (np.zeros((0, 2, 4), np.int64), np.zeros((2, 0), np.int64)):
        np.savez(tmp_path / "none.npz", ids=ids)
        with pytest.raises(MoecError, match=r"none\.npz: holds no token; nothing can be measured"):
            profile(model, [tmp_path / "none.npz"], tmp_path / "p.moeprof")
    assert [path.name for path in tmp_path.iterdir()] == ["none.npz"]


@pytest.mark.parametrize("period", [1, 8, 128])
def test_rows_are_kept_with_the_same_chance_whatever_their_place_in_a_text(period):
    """They stay in their order, and are the same ones however batches are cut."""
    places = np.arange(128 * 64) % period
    whole, parts = KeptRows(512), KeptRows(512)
    due = whole.due(len(places))
    whole.add(due, places[due])
    for start, end in itertools.pairwise((0, 5, 5, 700, 8000, len(places))):
        due = start + parts.due(end - start)
        parts.add(due, places[due])
    rows, kept = whole.arrays((), ())
    assert len(rows) == 512 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(parts.arrays((), ())[0], rows)
    assert abs(rows.mean() / len(places) - 0.5) < 0.05
    assert abs(np.mean(kept) - (period - 1) / 2) < 0.1 * period


@pytest.mark.nightly
def test_small_dense_products_are_measured_where_asked(model, ids, tmp_path):
    np.savez(tmp_path / "in.npz", ids=ids)
    actual = profile(model, [tmp_path / "in.npz"], tmp_path / "p.moeprof", minimum=0)
    assert actual.linears > 0
    passes = "O2,quantize-linears{{format=int4,method=gptq,profile={},minimum=0}}"
    compiled = moec.compile(model, passes=passes.format(tmp_path / "p.moeprof"))
    assert len(compiled.describe()["losses"]) == actual.linears
    small = measured(model, tmp_path, ids)
    with pytest.raises(MoecError, match=r"make one with moec profile, with --minimum where the product is small"):
        moec.compile(model, passes=passes.format(small.path))


def test_sums_that_overflow_are_refused(model, tmp_path):
    node = next(measurable(prepared(model).graph))
    sums = ExpertsSums(node, 1, tmp_path, "layer", moments=True)
    sums.add(np.full((2, sums.weights.inner), 1e30, np.float32), np.ones((2, 1), np.float32), np.zeros((2, 1), int))
    with pytest.raises(MoecError, match=r"node .*: expert 0: sums over what it reads or gives are not finite"):
        list(sums.arrays([]))


def test_few_rows_are_all_kept():
    rows = KeptRows(4)
    assert rows.arrays((2,))[0].shape == (0, 2)
    for new in (np.zeros((0, 2)), np.arange(6).reshape(3, 2)):
        rows.add(new[rows.due(len(new))])
    assert rows.arrays((2,))[0].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_sums_are_of_the_first_rows_and_counts_of_all(model, made, ids, tmp_path, monkeypatch):
    """Five rows suffice here: sums are over the first five, counts over all."""
    monkeypatch.setattr("moec.tools.profiling.sums.enough", lambda _inputs: 5)
    few = measured(model, tmp_path, ids)
    for layer, whole in zip(few.all_experts(), made.all_experts(), strict=True):
        assert layer.count.tolist() == whole.count.tolist()
        assert layer.measured.tolist() == np.minimum(whole.count, 5).tolist()
        for expert in range(8):
            rows, gates = whole.rows(expert)[:5], whole.row_gates(expert)[:5]
            np.testing.assert_allclose(layer.moment_in(expert), (rows * gates[:, None]).T @ rows, atol=1e-4)


def test_outputs_of_some_rows_stand_for_those_of_all(model, made, ids, tmp_path, monkeypatch):
    monkeypatch.setattr("moec.tools.profiling.one_expert.enough_outputs", lambda _hidden: 2)
    few, whole = (next(profile.all_experts()) for profile in (measured(model, tmp_path, ids), made))
    expert = int(whole.count.argmax())
    count = int(whole.count[expert])
    ends = whole.rows(expert)[[0, -1]]
    assert count > 4
    np.testing.assert_array_equal(few.moment_in(expert), whole.moment_in(expert))
    for name in ("output_norm", "saliency", "hidden"):
        some, every = few.array(name)[expert], whole.array(name)[expert]
        assert not np.allclose(some, every)
    node = next(node for node in measurable(prepared(model).graph) if key_of(node) == whole.key)
    norms = np.linalg.norm(expert_output(ExpertWeights(node), expert, ends)[1], axis=1)
    np.testing.assert_allclose(few.array("output_norm")[expert], norms.mean() * count, rtol=1e-5)


def test_the_number_of_threads_does_not_show(model, ids, tmp_path):
    one, two = (measured(model, tmp_path, ids, str(threads), threads=threads) for threads in (1, 2))
    for name in one.names():
        first, second = one.array(name), two.array(name)
        assert first is not None and second is not None
        assert first.tobytes() == second.tobytes(), name


@pytest.mark.parametrize("changed", [False, True], ids=["same", "changed"])
def test_experts_that_jobs_measure_are_the_same(model, ids, tmp_path, monkeypatch, changed):
    np.savez(tmp_path / "data.npz", ids=ids)
    if changed:
        monkeypatch.setattr("moec.tools.profiling.one_expert.key_of", lambda _node: "0" * 16)
    with Pickling() as executor:
        if changed:
            with pytest.raises(MoecError, match=r"model.onnx: was changed while it was profiled; profile it again"):
                profile(model, [tmp_path / "data.npz"], tmp_path / "b", executor=executor, formats="int4/32")
            assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]
            return
        profile(model, [tmp_path / "data.npz"], tmp_path / "b", executor=executor, formats="int4/32")
    profile(model, [tmp_path / "data.npz"], tmp_path / "a", formats="int4/32")
    assert executor.submitted == 2 * 8, "experts"
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_threads_multiply_on_their_own_threads():
    from threadpoolctl import threadpool_info

    with measuring_threads(2) as run:
        known = [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]
        assert list(run(lambda number: 2 * number, range(5))) == [0, 2, 4, 6, 8]
    assert known and set(known) == {1}


def test_a_full_disk_is_one_line_and_leaves_nothing(model, ids, tmp_path, monkeypatch):
    np.savez(tmp_path / "in.npz", ids=ids)
    load, limit = moec.load, resource.getrlimit(resource.RLIMIT_FSIZE)

    def load_and_fill(*arguments, **options):
        loaded = load(*arguments, **options)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limit[1]))
        return loaded

    monkeypatch.setattr(driver, "load", load_and_fill)
    try:
        with pytest.raises(MoecError, match=r"p\.moeprof: was not written: File too large"):
            profile(model, [tmp_path / "in.npz"], tmp_path / "p.moeprof")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npz"]


def test_another_models_profile_is_refused_before_anything_runs(model, made, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "write", lambda *_, **__: pytest.fail("was compiled"))
    with pytest.raises(MoecError, match=r"p\.moeprof: its formats are .*'int4/32'.*, those of .* are"):
        measured(model, tmp_path, ids, formats="int8", merge_with=[made.path])


def test_a_folder_is_known_by_its_configuration(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model.onnx").write_text("{}")
    of_folder, of_file = (driver._source(tmp_path / name) for name in ("model", "model.onnx"))
    assert of_folder == {"name": "model", "sha256": of_file["sha256"]} and len(of_file["sha256"]) == 64
