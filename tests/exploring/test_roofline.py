"""The section of rooflines, its advice, and the view that shows them."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from moec import targets
from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.common.weight_reads import WeightReads
from moec.common.work import Work
from moec.exploring import kernel_runs
from moec.exploring.advice import advice_for
from moec.exploring.kernel_runs import KernelRun, MachineLimits, Run
from moec.exploring.page import page as page_of
from moec.exploring.roofline import roofline
from moec.exploring.subject import Subject
from moec.targets.cuda.estimates.gpus import GPUS

from .browser import NARROW, opened
from .conftest import LIMITS
from .test_layers import bench
from .test_page import HOSTILE, of

MACHINE = MachineLimits("m", "s", Roofline(1, {"pages": 1e10}, (Peak(FLOAT32, "a", 1e11), Peak("int8", "b", 4e11))))
READS = WeightReads(count=1e6, bytes=4e6, inner=64)
ROUNDED = WeightReads(count=1e6, bytes=5e5, inner=64)


def kernel(name: str, made: str = "gemm", crossovers: tuple[str, ...] = (), experts: int = 1) -> dict[str, object]:
    return {
        "name": name,
        "attributes": {"experts": experts},
        "candidates": [{"kernel": made, "chosen": True}],
        "crossovers": crossovers,
    }


def row(seconds: float, work: Work, reads: WeightReads | None = None, **named: object) -> KernelRun:
    return KernelRun(kernel(**{"name": "k", **named}), 1, seconds, work, reads)


def run(*rows: KernelRun, measured: bool = True, machine: MachineLimits = MACHINE) -> Run:
    return Run("1 token", machine, rows, sum(each.seconds for each in rows) if measured else None)


READING = Work(10**6, 5_000_000)  # 0.5 ms of memory, 0.01 ms of arithmetic
COMPUTING = Work(10**8, 5_000_000)  # 0.5 ms of memory, 1 ms of arithmetic


def test_a_run_that_memory_limits_should_read_fewer_bytes():
    (advice,) = advice_for(run(row(0.00055, READING, READS, experts=8)))
    # int4/32 takes 4.5 bits of a weight (scales of 16 bits), int8 half a bit more than 8 (a float32 for 64 weights).
    assert advice.figures["share_of_bandwidth"] == pytest.approx(5 / 5.5)
    assert advice.figures["fewer_bytes_int4/32"] == pytest.approx((4e6 - 1e6 * 4.5 / 8) / 5e6)
    assert advice.figures["fewer_bytes_int8"] == pytest.approx((4e6 - 1e6 * 8.5 / 8) / 5e6)
    assert "reads 91% of what memory can deliver" in advice.text and "int4/32 would read 69% fewer" in advice.text
    assert advice.gain == pytest.approx(0.6875) and not advice.exact and "inexact" in advice.text
    assert advice.options == "--experts int4/32" and "weights of experts." in advice.text


@pytest.mark.parametrize(
    "quiet",
    [
        run(),
        run(row(0.0, READING, READS)),
        run(row(0.00055, READING)),  # no weights
        run(row(0.00055, READING, ROUNDED)),  # weights of 4 bits
        run(row(0.0003, READING, READS)),  # from caches, not from memory
        run(row(0.001, COMPUTING, ROUNDED), machine=dataclasses.replace(MACHINE, roofline=LIMITS)),
        run(row(0.001, dataclasses.replace(COMPUTING, arithmetic="int8"), ROUNDED)),
        run(row(0.001, COMPUTING)),  # products without weights
    ],
)
def test_figures_that_ask_for_nothing_give_no_advice(quiet):
    assert advice_for(quiet) == []


def test_float32_products_that_arithmetic_limits_should_use_a_faster_one():
    (advice,) = advice_for(run(row(0.001, COMPUTING, ROUNDED), measured=False))
    assert advice.options == "--linears int8" and not advice.exact
    assert advice.figures == {"share_of_time": 1.0, "times_as_fast": 4.0}
    assert advice.gain == pytest.approx(0.5)  # memory limits it then


@pytest.mark.parametrize(("crossovers", "says"), [((), False), (("rows",), True)])
def test_a_kernel_far_below_its_roof_is_named(crossovers, says):
    (advice,) = advice_for(run(row(0.005, READING, crossovers=crossovers), row(0.0001, READING, name="fast")))
    assert advice.kernels == ("k",) and advice.exact
    assert advice.figures["share_of_roof"] == pytest.approx(0.1)
    assert ("moec tune" in advice.text) is says and "reaches 10% of" in advice.text
    (far,) = advice_for(run(row(0.5, READING)))
    assert "reaches less than 1% of what memory allows" in far.text
    assert advice_for(run(row(0.005, READING), measured=False)) == []


def test_a_plain_loop_nest_with_much_of_the_time_is_named():
    loop = row(0.0002, READING, name="loop", made="generic")
    (advice,) = advice_for(run(row(0.0006, READING), loop))
    assert advice.kernels == ("loop",) and advice.figures == {"share_of_time": pytest.approx(0.25)}
    assert advice_for(run(row(0.006, READING), loop, measured=False)) == []


def test_short_calls_with_much_of_the_time_are_counted():
    tiny = Work(None, 20_000)
    short = [dataclasses.replace(row(4e-6, tiny, name=name), calls=2) for name in "ab"]
    (advice,) = advice_for(run(*short, row(4e-6, tiny)))  # far below their roofs, and yet no fault of the kernels
    assert advice.figures["calls"] == 5 and advice.gain is None
    assert advice_for(run(*short, row(0.0006, READING))) == []


def launch(**changed: object) -> dict[str, object]:
    fields = {"calls": 1, "waves": 2, "least_seconds": 0.0005, "limit": "memory", "occupancy_limit": "registers"}
    return {**fields, "warps_at_once": 8, "registers": 255, "shared_bytes": 0, **changed}


GPU = dataclasses.replace(MACHINE, warps=64)


def launched(seconds: float = 0.0005, **changed: object) -> Run:
    known = launch(least_seconds=seconds, **changed)
    return run(dataclasses.replace(row(seconds, READING), launches=(known,)), measured=False, machine=GPU)


def test_few_warps_at_once_are_named_where_registers_or_shared_memory_are_the_cause():
    (advice,) = advice_for(launched())
    assert "8 of 64 warps" in advice.text and "255 registers" in advice.text and advice.gain is None
    for enough in ({"occupancy_limit": "warps"}, {"warps_at_once": 32}, {"waves": 1}, {"limit": "arithmetic"}):
        assert advice_for(launched(**enough)) == []


def test_launches_that_take_longer_than_their_work_decide():
    (advice,) = advice_for(launched(2e-6))
    assert advice.figures["launches"] == 1 and "launches decide" in advice.text


def test_predicted_kernels_lie_on_the_roof(char_lm):
    section = roofline(Subject.open(char_lm, may_measure=True))
    assert [each["title"] for each in section["runs"]] == ["1 token", "256 tokens"] and section["faults"] == []
    (machine,) = section["machines"]
    for each in section["runs"]:
        assert not each["measured"] and sum(row["share_of_time"] for row in each["kernels"]) == pytest.approx(1)
        for row in filter(lambda row: row["operations"], each["kernels"]):
            roof = min(machine["bytes_per_second"] * row["operations_per_byte"], 1e11)
            assert row["operations_per_second"] == pytest.approx(roof)
    one = {row["name"]: row for row in section["runs"][0]["kernels"]}
    assert one["gemm_4"]["weight_bytes"] == 64 * 96 * 4
    assert one["moe_grouped_gemm"]["weight_bytes"] == 2 * 2 * 48 * 64 * 4  # two layers, two experts
    (advice,) = section["runs"][0]["advice"]
    assert advice["options"] == "--experts int4/32 --linears int4/32" and "experts and linear layers" in advice["text"]
    assert advice["figures"]["share_of_bandwidth"] == pytest.approx(1)


def test_without_permission_the_section_says_how_to_measure(char_lm):
    section = roofline(Subject.open(char_lm))
    assert section["runs"] == [] and "moec bench" in section["faults"][0]


def test_measured_kernels_keep_the_rates_of_the_benchmark(char_lm):
    measured = bench({"gemm": 2.0, "gather": 0.5})
    measured["cases"][0]["kernels"][0] |= {"gop_per_s": 3.0, "gb_per_s": 2.0}
    section = roofline(dataclasses.replace(Subject.open(char_lm), bench=measured))
    (each,) = section["runs"]
    assert each["measured"] and each["microseconds"] == 3000 and section["faults"] == []
    gemm, gather = each["kernels"]
    assert gemm["operations_per_second"] == pytest.approx(3e9) and gemm["operations_per_byte"] == pytest.approx(1.5)
    assert gemm["share_of_roof"] == pytest.approx(0.2) and gemm["weight_bytes"] == 2 * 64 * 64 * 4
    assert gather["operations"] is None and gather["operations_per_byte"] is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kernels": [{"name": "another"}]}, "'another'"),
        ({"inputs": {"pixels": [1, 3]}}, "'pixels'"),
        ({"milliseconds": {"moec": {"median": "x"}}}, "a number"),
        ({"milliseconds": {"moec": {"median": float("nan")}}}, "a number"),
    ],
)
def test_a_benchmark_of_another_model_is_named_and_predictions_stay(char_lm, changed, reason):
    measured = bench({"gemm": 2.0})
    measured["cases"][0] |= changed
    section = roofline(dataclasses.replace(Subject.open(char_lm, may_measure=True), bench=measured))
    assert reason in section["faults"][0] and not any(each["measured"] for each in section["runs"])


def test_kinds_name_the_machines_of_their_estimates():
    assert targets.kind_of("cuda").machines == tuple(GPUS) and targets.kind_of("cpu").machines == ()


def test_a_design_for_an_fpga_has_no_roofline():
    manifest = type("Manifest", (), {"target": "hls:zcu102"})
    artifact = type("Artifact", (), {"manifest": manifest})
    assert roofline(Subject("a", artifact)) is None


def test_runs_on_a_gpu_follow_from_its_launches(monkeypatch):
    weights = {"count": 10.0, "bytes": 40.0, "inner": 10}
    known = launch(kernel="k", operations=8, bytes_moved=50, arithmetic=FLOAT32, weights=weights)
    group = {"tokens": 1, "launches": [known, {**known, "calls": 3}]}
    data = {"gpu": "G", "roofline": LIMITS.as_data(), "warps": 64, "outside": [], "layers": [group]}
    data["not_estimated"] = [{"kernel": "other"}]
    subject = type("S", (), {"description": {"kernels": [kernel("k")]}})
    each = kernel_runs._estimated(subject, data, 1)
    (found,) = each.kernels
    assert (found.calls, found.work, found.reads) == (4, Work(32, 200), WeightReads(40.0, 160.0, 10))
    assert each.unknown == ("other",) and each.whole is None and each.machine.warps == 64


def test_the_view_shows_figures_and_leads_to_kernels(chromium, report):
    with opened(chromium, report, "#roofline") as page:
        assert "Predicted, not measured" in page.inner_text("main") and "--bench B.json" in page.inner_text("main")
        assert "fewer bytes" in page.inner_text(".advice") and "Results change" in page.inner_text(".advice")
        page.get_by_role("combobox", name="Run").select_option("256 tokens")
        assert "256 tokens" in page.locator("svg[role=img]").first.get_attribute("aria-label")
        point = page.locator("a.kernel-point[href='#kernel/attention']")
        point.focus()
        assert "operations per byte" in page.inner_text("[role=status]")
        point.press("Enter")
        page.wait_for_selector("main h2:has-text('attention')")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> pathlib.Path:
    """A report with 400 kernels of hostile names, some without operations or time."""
    fields = {"kind": "product", "generic": False, "calls": 1, "share_of_time": 0.0025, "arithmetic": FLOAT32}
    rates = {"operations": 5, "bytes": 5, "weight_bytes": None, "share_of_roof": 0.5, "limit": "memory"}
    rows = [
        {"name": f"{HOSTILE * (1 if at % 100 else 99)}{at}", "microseconds": float(at), **fields, **rates}
        | {"operations_per_byte": at or None, "operations_per_second": 1e9 * at or None, "bytes_per_second": None}
        for at in range(400)
    ]
    advice = {"text": HOSTILE, "kernels": [row["name"] for row in rows], "figures": {}, "gain": None, "exact": True}
    shown = {"title": HOSTILE, "machine": 0, "measured": True, "microseconds": 1.0, "kernel_microseconds": 1.0}
    shown |= {"kernels": rows, "not_predicted": [HOSTILE * 9], "advice": [advice | {"options": ""}]}
    roofs = [{"arithmetic": [FLOAT32], "operations_per_second": 1e10}]
    machine = {"title": HOSTILE, "source": HOSTILE, "bytes_per_second": 1e9, "roofs": roofs}
    section = {"machines": [machine], "runs": [shown], "faults": [HOSTILE]}
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(page_of(of("a", roofline=json.loads(json.dumps(section)))), encoding="utf-8")
    return path


def test_many_kernels_with_hostile_names_fit_a_small_screen(chromium, hostile):
    with opened(chromium, hostile, "#roofline", NARROW) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"the page ran {dialog.message}"))
        assert page.locator("a.kernel-point").count() == 399 and page.locator("main img").count() == 0
        assert "1 kernel whose operations are not counted" in page.inner_text("main")
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW[0]
