"""The section of layers, and the map that shows it."""

from __future__ import annotations

import dataclasses
import json

import pytest

import moec
from moec import targets
from moec.common.errors import ArtifactError
from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.exploring import kernel_runs
from moec.exploring.layers import layers
from moec.exploring.page import page as page_of
from moec.exploring.subject import Subject
from moec.targets.cuda.kind import CudaKind
from moec.targets.hls.kind import HlsKind
from moec.targets.hls.layer_times import layer_estimate
from moec.targets.kind import CommandResult

from .browser import NARROW, opened
from .conftest import LIMITS
from .test_page import HOSTILE, of

BENCH_ROW = {"calls": 2, "gop_per_s": None, "gb_per_s": 1.0, "share_of_roofline": 0.5}


def bench(kernels: dict[str, float]) -> dict[str, object]:
    """A benchmark of one run, with milliseconds of kernels."""
    rows = [{"name": name, "milliseconds": value, **BENCH_ROW} for name, value in kernels.items()]
    case = {"inputs": {"ids": [1, 4]}, "milliseconds": {"moec": {"median": 3.0}}, "kernels": rows}
    return {"cases": [case], "roofline": LIMITS.as_data()}


def test_parts_have_the_weights_blocks_and_kernels_of_the_artifact(char_lm):
    shown = Subject.open(char_lm)
    parts = layers(shown)["parts"]
    assert [(part["layer"], part["title"]) for part in parts if part["kind"] != "rest"] == [
        ("input", "Embedding"),
        (0, "Attention"),
        (0, "MoE block"),
        (1, "Attention"),
        (1, "MoE block"),
        ("output", "Head"),
    ]
    blocks = [part for part in parts if part["block"] is not None]
    names = [shown.description["moe_blocks"][part["block"]]["name"] for part in blocks]
    assert all(name in part["nodes"] for name, part in zip(names, blocks, strict=True))
    assert all("moe_grouped_gemm" in part["kernels"] for part in blocks)
    assert parts[0]["weight_bytes"] == next(w.bytes for w in shown.artifact.manifest.weights if w.shape == (96, 64))
    nodes = {node for kernel in shown.description["kernels"] for node in kernel["nodes"]}
    assert nodes <= {node for part in parts for node in part["nodes"]}
    attention = next(place for place, part in enumerate(parts) if part["title"] == "Attention")
    assert attention in next(part for part in parts if part["layer"] == 0 and part["kind"] == "rest")["reads"]


def test_measured_times_are_divided_among_calls(char_lm):
    measured = dataclasses.replace(Subject.open(char_lm), bench=bench({"attention": 2.0, "gather": 0.5}))
    section = layers(measured)
    assert section["cases"] == [{"title": "ids 1 x 4", "measured": True, "limits": None, "microseconds": 3000.0}]
    of_title = {(part["layer"], part["title"]): part["microseconds"] for part in section["parts"]}
    assert of_title[0, "Attention"] == of_title[1, "Attention"] == [1000.0]
    assert of_title["input", "Embedding"] == [500.0]
    assert of_title[0, "MoE block"] == [0.0]


def test_a_benchmark_of_another_artifact_gives_no_times(char_lm):
    section = layers(dataclasses.replace(Subject.open(char_lm), bench=bench({"another": 1.0})))
    assert section["cases"] == [] and "another" in section["no_times"]


def test_predicted_times_follow_from_limits(char_lm, monkeypatch):
    slow = Roofline(1, {"pages": 1e6}, (Peak(FLOAT32, "units", 1e15),))
    monkeypatch.setattr(kernel_runs, "limits_of_this_machine", lambda target, threads: slow)
    section = layers(Subject.open(char_lm, may_measure=True))
    (case,) = section["cases"]
    assert not case["measured"] and case["limits"].startswith("This machine")
    of_kind = {(part["layer"], part["kind"]): part["microseconds"][0] for part in section["parts"]}
    head = 4 * (64 * 96 + 96 + 64 + 96)  # a product with a bias, for one token
    assert of_kind["output", "head"] >= head
    chosen = 2 * (2 * 64 * 48 + 48 * 64) * 4  # two experts of eight
    assert chosen < of_kind[0, "moe"] < 2 * chosen + 20000


def test_without_permission_nothing_is_measured(char_lm):
    section = layers(Subject.open(char_lm))
    assert section["cases"] == [] and "moec bench" in section["no_times"]


def test_the_map_leads_to_blocks_and_kernels(chromium, report):
    with opened(chromium, report, "#map") as page:
        picture = page.locator("main svg[role=img]")
        assert picture.get_attribute("aria-label") == "Layers by bytes of weights"
        page.get_by_label("Time").click()
        assert "Predicted, not measured" in page.inner_text("main")
        page.locator("main svg a[href='#block/1']").click()
        assert page.wait_for_selector("main h2:has-text('MoE block 1, layer 1')")
        page.get_by_role("link", name="moe_route").click()
        page.wait_for_selector("main h2:has-text('moe_route')")


def test_measured_times_are_marked_so(chromium, char_lm, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(bench({"attention": 2.0, "gather": 0.5})), encoding="utf-8")
    moec.explore(char_lm, tmp_path / "report.html", bench=tmp_path / "b.json")
    with opened(chromium, tmp_path / "report.html", "#map") as page:
        page.get_by_label("Time").click()
        shown = page.inner_text("main")
        assert "Measured: ids 1 x 4. The whole run took 3 ms, its kernels 2.5 ms" in shown
        assert "TIME, MEASURED" in shown.upper() and "predicted" not in shown.lower()


def test_attention_shows_its_kernels_on_a_small_screen(chromium, report):
    with opened(chromium, report, "#map", NARROW) as page:
        page.get_by_role("link", name="Layer 0: Attention", exact=True).click()
        page.wait_for_selector("main h2:has-text('Layer 0: Attention')")
        assert page.get_by_role("link", name="attention", exact=True).count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW[0]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report in which every name is hostile and long."""
    part = {"title": HOSTILE, "kind": "moe", "layer": 0, "block": 0, "reads": [0], "nodes": [HOSTILE * 99]}
    part |= {"kernels": [HOSTILE], "weight_bytes": 1, "shared_bytes": 0, "formats": {HOSTILE: 1}, "microseconds": [1.0]}
    case = {"title": HOSTILE, "measured": False, "limits": HOSTILE, "microseconds": None}
    section = {"parts": [part], "cases": [case], "no_times": None, "stored_bytes": 1}
    block = {"name": HOSTILE * 99, "op": HOSTILE, "num_experts": 1, "top_k": 1, "hidden_size": 1, "router": HOSTILE}
    block |= {"intermediate_size": 1, "activation": HOSTILE, "gate_layout": HOSTILE, "formulation": HOSTILE}
    block |= {"formats": {HOSTILE: [HOSTILE]}, "experts": {"arithmetic": HOSTILE}}
    remark = {"pass_name": HOSTILE, "severity": "note", "subject": HOSTILE * 99, "message": HOSTILE}
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(page_of(of(HOSTILE, layers=section, moe_blocks=[block], remarks=[remark])), encoding="utf-8")
    return path


def test_hostile_names_are_text_in_all_places(chromium, hostile):
    with opened(chromium, hostile, "#map", NARROW) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"the page ran {dialog.message}"))
        for address in ("#map", "#map/0", "#block/0"):
            page.goto(f"{hostile.as_uri()}{address}")
            page.wait_for_selector("main h2")
            assert HOSTILE in page.inner_text("main")
            assert page.locator("main img").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW[0]


def test_the_document_holds_the_section(char_lm):
    from moec.exploring.document import document

    (artifact,) = document([Subject.open(char_lm)])["artifacts"]
    assert json.loads(json.dumps(artifact["layers"])) == artifact["layers"]


class Gpu(CudaKind):
    """A kind of GPU that estimates launches of two kernels."""

    def estimate_launches(self, artifact, machine, tokens, past, architecture=None):
        work = {"operations": 0, "bytes_moved": 1, "arithmetic": FLOAT32, "weights": None}
        attention = {"kernel": "attention", "calls": 2, "least_seconds": 3e-6, **work}
        experts = {"kernel": "moe_combine", "calls": 1, "least_seconds": 5e-6, **work}
        data = {"gpu": "G", "roofline": LIMITS.as_data(), "warps": 64, "not_estimated": []}
        data |= {"layers": [{"launches": [experts]}] * 2, "outside": [{"launches": [attention]}]}
        return CommandResult(data, (), True)


def test_predicted_launches_of_a_gpu_are_those_of_their_nodes(char_lm, monkeypatch):
    monkeypatch.setattr(targets, "kind_of", lambda target: Gpu())
    subject = Subject.open(char_lm)
    section = layers(subject)
    assert section["cases"][0]["limits"] == "G, published figures"
    of_title = {(part["layer"], part["title"]): part["microseconds"] for part in section["parts"]}
    assert of_title[0, "Attention"] == of_title[1, "Attention"] == [3.0]
    assert of_title[0, "MoE block"] == of_title[1, "MoE block"] == [5.0]


PROJECT = {
    "layers": [{"node": "node_topk__1.experts"}],
    "weights": {"node_topk__1.experts": "int8"},
    "estimate": {"clock_megahertz": 100, "board": "b"}
    | {"cycles": {"total": 9, "layers": [{"kind": "experts", "cycles": 300}, {"kind": "head", "cycles": 200}]}},
}


def test_cycles_of_a_design_are_times_and_its_formats_count(char_lm, monkeypatch):
    monkeypatch.setattr(targets, "kind_of", lambda target: HlsKind())
    subject = Subject.open(char_lm)
    subject.description["projects"] = [{"name": "p", "report": PROJECT}]
    section = layers(subject)
    assert section["cases"][0] == {"title": "one call", "measured": False, "limits": "b, cycles estimated"} | {
        "microseconds": None
    }
    block, head = (next(part for part in section["parts"] if part["kind"] == kind) for kind in ("moe", "head"))
    assert block["microseconds"] == [3.0] and head["microseconds"] == [2.0]
    assert block["formats"]["int8"] == 8 * 3 * 64 * 48  # of its experts, and not of its router
    assert "int8" not in head["formats"]


def test_a_report_without_cycles_is_refused():
    alone = {"node": "n", "estimate": {"clock_megahertz": 200, "board": "b", "cycles": {"total": 400}}}
    assert layer_estimate([{"report": alone}]).nodes == {"n": 2e-6}
    for broken in ({}, {**PROJECT, "layers": []}, {**alone, "estimate": {"clock_megahertz": 0}}):
        with pytest.raises(ArtifactError, match="has no cycles of layers"):
            layer_estimate([{"report": broken}])
