"""Every view, in light and dark, wide and narrow: nothing overflows, pictures have names, and tables captions."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import moec
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.exploring.page import page as page_of
from moec.targets.hls.options import HlsOptions

from ..conftest import EXAMPLE
from .browser import NARROW, WIDE, opened
from .hostile import NAMES, document

VISION = EXAMPLE.parent / "vision_moe"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
UNNAMED = """[...document.querySelectorAll("svg:not([aria-hidden=true])")]
    .filter((svg) => !svg.getAttribute("aria-label") && !svg.querySelector(":scope > title")).length"""
WITHOUT_CAPTION = "[...document.querySelectorAll('table')].filter((table) => !table.caption?.textContent).length"
REACHED = "document.activeElement.closest('.panes, .table, .graph-pane, .difference') !== null"
UNREACHABLE = """[...document.querySelectorAll(".table, .graph-pane, .difference, .cm-content")]
    .filter((pane) => pane.tabIndex < 0 && !pane.isContentEditable).length"""


def faults(page) -> dict[str, int]:
    """Numbers of faults of the view that is shown: pixels that overflow, pictures and tables without a name, and panes
    that the Tab key does not reach."""
    counts = {"overflow": OVERFLOW, "unnamed": UNNAMED, "captions": WITHOUT_CAPTION, "unreachable": UNREACHABLE}
    return {name: count for name, script in counts.items() if (count := page.evaluate(script)) > 0}


def check_views(chromium, report, size, scheme) -> list[str]:
    """Check all views of all artifacts of a report. Returns their names."""
    with opened(chromium, report, "", size, scheme) as page:
        titles = [text.split()[0] for text in page.locator("nav a").all_inner_texts()]
        found = {}
        for at in range(len(titles)):
            page.locator("nav a").nth(at).click()
            page.wait_for_selector("nav a[aria-current]")
            page.wait_for_selector("main h2")
            found[titles[at]] = faults(page)
        assert {name: counts for name, counts in found.items() if counts} == {}
        return titles


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["wide", "narrow"])
def test_no_view_of_char_lm_overflows_or_lacks_a_name(chromium, report, size, scheme):
    views = {"Map", "MoE", "Experts", "Kernels", "Passes", "Why", "Roofline"}
    assert views <= set(check_views(chromium, report, size, scheme))


def test_a_fault_is_found(chromium, report):
    with opened(chromium, report) as page:
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<table></table><svg width=9000></svg>')")
        assert faults(page).keys() == {"overflow", "unnamed", "captions"}


def test_tabs_reach_the_panes_of_a_kernel(chromium, report):
    with opened(chromium, report, "#kernel/moe_combine") as page:
        page.locator("main").focus()
        for _ in range(9):
            page.keyboard.press("Tab")
            if page.evaluate(REACHED):
                break
        assert page.evaluate(REACHED)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_hostile_names_neither_run_nor_break_a_view(chromium, tmp_path, name):
    path = tmp_path / "report.html"
    path.write_text(page_of(document(name)), encoding="utf-8")
    views = check_views(chromium, path, NARROW, "light")
    assert {"Design", "Roofline", "Timeline"} <= set(views)
    with opened(chromium, path, "", NARROW) as page:
        page.keyboard.press("/")
        page.wait_for_selector("dialog li")
        assert (faults(page), page.evaluate("window.ran")) == ({}, None)
        assert page.locator("img").count() == 0
        shown = page.evaluate("document.title + document.documentElement.innerText")
        assert not {"\u202e", "\u2066", "\u200f"}.intersection(shown)


def granite(folder: pathlib.Path) -> pathlib.Path:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.GraniteMoeConfig(vocab_size=64, num_hidden_layers=24, **sizes, **experts)
    transformers.GraniteMoeForCausalLM(config).save_pretrained(folder)
    return folder


def deepseek(folder: pathlib.Path) -> pathlib.Path:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    config = transformers.DeepseekV3Config(
        vocab_size=64,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        moe_intermediate_size=16,
        **sizes,
        **latent,
        **experts,
    )
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(folder)
    return folder


def vision() -> CompileOptions:
    return CompileOptions("hls:zcu102", target_options=HlsOptions(dict(np.load(VISION / "calibration.npz"))))


ARTIFACTS = {
    "granite": (granite, CompileOptions),
    "deepseek_v3": (deepseek, CompileOptions),
    "cuda": (lambda _: EXAMPLE / "model.onnx", lambda: CompileOptions("cuda:sm_90a")),
    "fpga": (lambda _: VISION / "model.onnx", vision),
}


@pytest.fixture(scope="module", params=ARTIFACTS)
def artifact(request, tmp_path_factory):
    """An artifact of each kind of model and target."""
    make, options = ARTIFACTS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    compiler.write(make(folder / "model"), folder / "model.moec", options())
    return folder / "model.moec"


@pytest.mark.nightly
def test_no_view_of_an_artifact_overflows_or_lacks_a_name(chromium, artifact, tmp_path):
    moec.explore(artifact, tmp_path / "report.html")
    for size in (WIDE, NARROW):
        for scheme in ("light", "dark"):
            assert len(check_views(chromium, tmp_path / "report.html", size, scheme)) >= 3
