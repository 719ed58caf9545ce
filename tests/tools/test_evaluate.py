"""Several models evaluated together, against numbers computed from their tables of logits."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import moec
from moec.common.errors import MoecError
from moec.compiling import compiler
from moec.tools.data import KeptTokenizer, TextOptions
from moec.tools.evaluate import Evaluation, _kept_tokenizer, evaluate
from moec.tools.paired import quantile_of_t

from ..executors import Pickling

V = 5
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
IDS = np.random.default_rng(0).integers(0, V, (6, 7))


def table(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((V, V)).astype(np.float32)


def bigrams(logits: np.ndarray, mask: bool = False) -> moec.CompiledModel:
    """Map ids [rows, length] to logits [rows, length, V], the row of a table for each token."""
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", "length"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "length", V])]
    nodes = [helper.make_node("Gather", ["table", "ids"], ["logits"])]
    if mask:
        inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["rows", "length"]))
        outputs.append(helper.make_tensor_value_info("masked", TensorProto.INT64, ["rows", "length"]))
        nodes.append(helper.make_node("Mul", ["ids", "attention_mask"], ["masked"]))
    graph = helper.make_graph(nodes, "bigrams", inputs, outputs, [onnx.numpy_helper.from_array(logits, "table")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return moec.compile(proto, passes="O0", threads=1)


@pytest.fixture(scope="module")
def models() -> list[moec.CompiledModel]:
    return [bigrams(table(1)), bigrams(table(2))]


def saved(path: pathlib.Path, **arrays: Any) -> pathlib.Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def data(tmp_path) -> pathlib.Path:
    return saved(tmp_path / "data.npz", ids=IDS)


@pytest.mark.parametrize(
    ("metrics", "labels"), [([], None), (["kl", "loss"], None), (["top1"], "file"), (["cosine"], None)], ids=str
)
def test_jobs_give_the_same_results(models, tmp_path, metrics, labels):
    """Batches of two files in three jobs; one artifact is a zip."""
    paths = [tmp_path / "a.moec", tmp_path / "b.zip"]
    for model, path in zip(models, paths, strict=True):
        model.save(path)
    (tmp_path / "data").mkdir()
    saved(tmp_path / "data" / "1.npz", ids=IDS[:1]), saved(tmp_path / "data" / "2.npz", ids=IDS[1:3])
    data = [tmp_path / "data", saved(tmp_path / "more.npz", ids=IDS[3:])]
    if labels is not None:
        labels = saved(tmp_path / "labels.npz", labels=np.arange(IDS.size).reshape(IDS.shape) % V)
    options = {"metrics": metrics, "labels": labels}
    expected = evaluate(paths, data, **options)
    with Pickling() as executor:
        actual = evaluate(paths, data, executor=executor, **options)
    assert executor.submitted == 3
    assert json.dumps(actual.as_data()) == json.dumps(expected.as_data())


@pytest.mark.parametrize("place", ["labels", "second file", "third batch"])
def test_jobs_give_the_same_error(models, tmp_path, place):
    """A file that cannot be read comes after an error in a batch before it."""
    models[0].save(tmp_path / "a.moec")
    labels = saved(tmp_path / "labels.npz", labels=np.zeros((6 if place != "labels" else 7, 7), int))
    first = saved(tmp_path / "1.npz", ids=IDS[:4])
    second = saved(tmp_path / "2.npz", ids=IDS[4:, : 6 if place == "third batch" else None])
    unread = [saved(tmp_path / "3.npz", x=IDS)] if place != "labels" else []
    with Pickling() as executor:
        lines = []
        for options in ({}, {"executor": executor}):
            with pytest.raises(MoecError) as caught:
                evaluate([tmp_path / "a.moec"], [first, second, *unread], metrics=["top1"], labels=labels, **options)
            lines.append(str(caught.value))
    assert lines[0] == lines[1]
    expected = {"labels": "labels of 7 rows", "second file": "3.npz: has no array", "third batch": "2.npz, batch 1"}
    assert expected[place] in lines[0]


def test_a_model_that_a_job_cannot_compile_is_named(tmp_path, data):
    with (
        concurrent.futures.ThreadPoolExecutor(1) as executor,
        pytest.raises(MoecError, match=r"none.onnx: no such file"),
    ):
        evaluate([tmp_path / "none.onnx"], [data], executor=executor)


def test_a_loaded_model_is_refused_where_it_is_not(models, data):
    with pytest.raises(MoecError, match=r"model 1 is loaded in this process alone; give the path of its artifact"):
        evaluate(models, [data], workers=1)


def test_an_artifact_that_changes_meanwhile_is_refused(models, data, tmp_path):
    models[0].save(tmp_path / "a.moec")

    def submit(function, *arguments):
        models[1].save(tmp_path / "a.moec")
        future = concurrent.futures.Future()
        future.set_result(function(*arguments))
        return future

    with pytest.raises(MoecError, match=r"a.moec: was changed during the evaluation; start it again"):
        evaluate([tmp_path / "a.moec"], [data], executor=mock.Mock(submit=submit))


def test_what_cannot_run_here_is_refused_before_anything_is_compiled(tmp_path, data, monkeypatch):
    monkeypatch.setattr(compiler, "compile", lambda *_, **__: pytest.fail("was compiled"))
    (tmp_path / "art").mkdir()
    with pytest.raises(MoecError, match="art"):
        evaluate([tmp_path / "model.onnx", tmp_path / "art"], [data])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1, keepdims=True))


def losses(seed: int, ids: np.ndarray = IDS) -> np.ndarray:
    """Compute [rows, length - 1]: minus the log of the next token's probability."""
    return -log_softmax(table(seed))[ids[:, :-1], ids[:, 1:]]


def values(evaluation: Evaluation, metric: str) -> list[float]:
    return [model.qualities[metric].value for model in evaluation.models]


def test_loss_perplexity_and_top1_of_next_tokens(models, data):
    actual = evaluate(models, [data], metrics=["loss", "perplexity", "top1"])
    means = [losses(seed).mean() for seed in (1, 2)]
    np.testing.assert_allclose(values(actual, "loss"), means, rtol=1e-12)
    np.testing.assert_allclose(values(actual, "perplexity"), np.exp(means), rtol=1e-12)
    right = [(table(seed)[IDS[:, :-1]].argmax(axis=-1) == IDS[:, 1:]).mean() for seed in (1, 2)]
    np.testing.assert_allclose(values(actual, "top1"), right, rtol=1e-12)
    assert (actual.rows, actual.predictions, actual.output) == (6, 36, "logits")
    assert [model.name for model in actual.models] == ["model 1", "model 2"]
    assert [model.weight_bytes for model in actual.models] == [V * V * 4] * 2


def test_a_difference_has_the_interval_of_the_rows_own_differences(models, data):
    actual = evaluate([*models, models[0]], [data], metrics=["loss", "perplexity"])
    rows = (losses(2) - losses(1)).mean(axis=1)
    half = 2.5706 * rows.std(ddof=1) / np.sqrt(6)
    first, second, again = (model.qualities["loss"] for model in actual.models)
    assert (first.difference, first.interval) == (None, None)
    np.testing.assert_allclose([second.difference, second.interval], [rows.mean(), half], rtol=2e-3)
    assert (again.difference, again.interval) == (0, 0)
    own, other = (np.exp(losses(seed).mean()) * losses(seed).mean(axis=1) for seed in (2, 1))
    interval = 2.5706 * (own - other).std(ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(actual.models[1].qualities["perplexity"].interval, interval, rtol=2e-3)


def test_rows_count_as_they_hold_positions(models, tmp_path):
    pieces = [saved(tmp_path / f"{at}.npz", ids=ids) for at, ids in enumerate((IDS[:2], IDS[2:5, :3]))]
    actual = evaluate(models, pieces, metrics=["loss"])
    means = [np.concatenate([losses(seed, IDS[:2]).ravel(), losses(seed, IDS[2:5, :3]).ravel()]) for seed in (1, 2)]
    np.testing.assert_allclose(values(actual, "loss"), [mean.mean() for mean in means], rtol=1e-12)
    assert (actual.rows, actual.predictions) == (5, 18)


def test_divergence_and_cosine_compare_with_the_first(models, data):
    actual = evaluate(models, [data], metrics=["kl", "cosine"])
    first, second = (table(seed)[IDS].astype(np.float64) for seed in (1, 2))
    log = [log_softmax(logits) for logits in (first, second)]
    divergence = (np.exp(log[0]) * (log[0] - log[1])).sum(axis=-1).mean()
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    np.testing.assert_allclose(values(actual, "kl"), [0, divergence], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        values(actual, "cosine"), [1, ((first * second).sum(axis=-1) / norms).mean()], rtol=1e-10
    )
    assert actual.predictions == 0


def test_logits_may_be_minus_infinity_or_large(data):
    logits = table(1) * 1e30
    logits[:, 0] = -np.inf
    actual = evaluate([bigrams(logits), bigrams(logits)], [data], metrics=["kl", "top1"])
    assert values(actual, "kl") == [0, 0]
    expected = (logits[IDS[:, :-1]].argmax(axis=-1) == IDS[:, 1:]).mean()
    assert values(actual, "top1") == [expected] * 2


def test_what_is_no_number_is_counted_and_stays_one(models, data):
    broken = table(1)
    broken[2, 3] = np.nan
    actual = evaluate([models[0], bigrams(broken)], [data], metrics=["loss", "top1", "kl"])
    assert all(np.isnan(values(actual, metric)[1]) for metric in ("loss", "top1", "kl"))
    assert (actual.models[0].nan_outputs, actual.models[1].nan_outputs) == (0, (IDS == 2).sum())
    assert actual.models[1].nan_rows == (IDS == 2).any(axis=1).sum()
    assert actual.as_data()["models"][1]["qualities"]["loss"]["value"] == "nan"


def test_padding_does_not_count(tmp_path):
    mask = np.ones_like(IDS)
    mask[:, 4:] = 0
    data = saved(tmp_path / "d.npz", ids=IDS, attention_mask=mask)
    actual = evaluate([bigrams(table(1), mask=True)], [data], metrics=["loss"])
    np.testing.assert_allclose(values(actual, "loss"), [losses(1, IDS[:, :4]).mean()], rtol=1e-12)
    assert actual.predictions == 18


def test_labels_of_the_data_and_of_a_file_come_before_next_tokens(models, tmp_path):
    labels = np.random.default_rng(3).integers(0, V, IDS.shape)
    labels[0, :3] = -100
    inside = saved(tmp_path / "inside.npz", ids=IDS, labels=labels)
    outside = saved(tmp_path / "outside.npz", ids=IDS.reshape(3, 2, 7))  # three batches
    counted = labels != -100
    expected = -log_softmax(table(1))[IDS[counted], labels[counted]]
    for actual in (
        evaluate(models, [inside], metrics=["loss"]),
        evaluate(models, [outside], metrics=["loss"], labels=saved(tmp_path / "labels.npz", anything=labels)),
    ):
        np.testing.assert_allclose(values(actual, "loss")[0], expected.mean(), rtol=1e-12)
        assert actual.predictions == labels.size - 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (IDS[:5], r"labels.npz, .*batch 1: labels are \[5, 7\]; expected \[6, 7\]"),
        (np.concatenate([IDS, IDS]), r"labels.npz: holds labels of 12 rows; the data has 6"),
        (IDS + 1, r"there is a label 5; expected 0 to 4, or -100 for none"),
        (IDS.astype(np.float32), r"labels are float32; expected integers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(models, data, tmp_path, labels, message):
    with pytest.raises(MoecError, match=message):
        evaluate(models, [data], metrics=["loss"], labels=saved(tmp_path / "labels.npz", labels=labels))


def test_metrics_need_what_they_compare_with(models, data):
    with pytest.raises(MoecError, match="no metric 'accuracy'; expected loss, perplexity"):
        evaluate(models, [data], metrics=["accuracy"])
    with pytest.raises(MoecError, match="kl compares with the first model; give at least two"):
        evaluate(models[:1], [data], metrics=["kl"])
    with pytest.raises(MoecError, match="no output 'loss'"):
        evaluate(models, [data], output="loss")
    assert list(evaluate(models, [data]).models[0].qualities) == ["loss", "top1"]


def test_data_without_a_prediction_is_refused(models, tmp_path):
    with pytest.raises(MoecError, match="holds no position to judge"):
        evaluate(models, [saved(tmp_path / "d.npz", ids=IDS[:, :1])], metrics=["loss"])
    with pytest.raises(MoecError, match="'ids' holds 0 to 5; expected 0 to 4"):
        evaluate(models, [saved(tmp_path / "large.npz", ids=IDS + (IDS == 4))], metrics=["loss"])


def test_rows_of_text(models, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate("abcde")}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    built.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("\n".join(" ".join("abcde"[token] for token in row) for row in IDS))
    text = TextOptions(tmp_path / "tokenizer.json", length=7, batch=4)
    actual = evaluate(models, [tmp_path / "text.txt"], metrics=["loss"], text=text)
    np.testing.assert_allclose(values(actual, "loss"), [losses(1).mean(), losses(2).mean()], rtol=1e-12)
    assert actual.rows == 6


def holding(content, name="text/tokenizer.json"):
    """Make a model whose artifact holds a tokenizer, or none."""
    entry = None if content is None else SimpleNamespace(tokenizer=name, checked_by="0")
    artifact = SimpleNamespace(manifest=SimpleNamespace(text=entry), text={name: content}.__getitem__)
    return SimpleNamespace(artifact=artifact)


def test_text_takes_the_tokenizer_that_models_hold():
    models = [("a", holding(None)), ("b", holding("{}")), ("c", holding("{}"))]
    assert _kept_tokenizer(models, ["t.txt"]) == KeptTokenizer("{}", "b: text/tokenizer.json", "0")
    assert _kept_tokenizer(models, ["t.npz"]) is None and _kept_tokenizer(models[:1], ["t.txt"]) is None
    with pytest.raises(MoecError, match=r"^d: text/tokenizer.json: is another tokenizer than b: text/tokenizer.json; "):
        _kept_tokenizer([*models, ("d", holding("[]"))], ["t.txt"])


def test_models_of_other_inputs_are_refused(models, data):
    with pytest.raises(MoecError, match=r"model 2: takes .*attention_mask.*, and model 1 takes ids.*the same model"):
        evaluate([models[0], bigrams(table(1), mask=True)], [data])


def test_quantiles_are_those_of_tables():
    tabulated = {1: 12.706, 2: 4.303, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}
    for degrees, value in tabulated.items():
        assert quantile_of_t(degrees) == pytest.approx(value, rel=2e-3)


def test_the_examples_have_the_quality_that_they_say(tmp_path):
    held_out = evaluate([EXAMPLES / "char_lm" / "model.onnx"], [EXAMPLES / "char_lm" / "heldout.npz"])
    assert round(values(held_out, "loss")[0], 4) == 1.3783
    digits = EXAMPLES / "digits"
    read = evaluate([digits / "model.onnx"], [digits / "inputs.npz"], labels=digits / "labels.npz")
    assert values(read, "top1") == [432 / 450]
    with pytest.raises(MoecError, match="has no labels to judge by; add --labels FILE, or give two models"):
        evaluate([digits / "model.onnx"], [digits / "inputs.npz"])
