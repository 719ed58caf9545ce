"""Comparison of synthesis reports with estimates, as a library and as the script that projects carry."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
import subprocess
import sys

import pytest

from moec.common.errors import MoecError
from moec.targets.hls import compare_report
from moec.targets.hls.design.experts import BlockShape, Design
from moec.targets.hls.hardware.calibration import read_calibrations
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.moe.exploration import Constraints, explore

from .layers import estimated as estimate_of

ESTIMATE = estimate_of(Design(BlockShape(16, 64, 128, 4, 2)), find_part("zcu102"), [8] * 4).as_dict()
MODULE = """<Module><Name>{name}</Name><PerformanceEstimates><SummaryOfLoopLatency><{loop}><Name>{loop}</Name>
    <TripCount>12</TripCount>
    <PipelineII>{interval}</PipelineII><PipelineDepth>{depth}</PipelineDepth></{loop}></SummaryOfLoopLatency></PerformanceEstimates>
    <AreaEstimates><Resources><DSP>{dsp}</DSP><BRAM_18K>0</BRAM_18K><FF>1</FF><LUT>1</LUT></Resources></AreaEstimates>
    </Module>"""


def report(dsp=400, interval=1, estimated="2.433", worst="99999", part="xczu9eg-ffvb1156-2-e", depth=17):
    modules = MODULE.format(name="product_up_block_s", loop="up_jobs", interval="undef", depth="undef", dsp=144)
    name = "product_up_block_Pipeline_up_inputs"
    modules += MODULE.format(name=name, loop="up_inputs", interval=interval, depth=depth, dsp=999)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<profile>
  <ReportVersion><Version>2023.2</Version></ReportVersion>
  <UserAssignments><unit>ns</unit><ProductFamily>zynquplus</ProductFamily><Part>{part}</Part>
    <TopModelName>moe_block</TopModelName><TargetClockPeriod>3.33</TargetClockPeriod>
    <ClockUncertainty>0.40</ClockUncertainty></UserAssignments>
  <PerformanceEstimates><PipelineType>dataflow</PipelineType>
    <SummaryOfTimingAnalysis><unit>ns</unit><EstimatedClockPeriod>{estimated}</EstimatedClockPeriod></SummaryOfTimingAnalysis>
    <SummaryOfOverallLatency><unit>clock cycles</unit><Best-caseLatency>100</Best-caseLatency>
      <Average-caseLatency>undef</Average-caseLatency><Worst-caseLatency>{worst}</Worst-caseLatency></SummaryOfOverallLatency>
  </PerformanceEstimates>
  <AreaEstimates>
    <Resources><BRAM_18K>200</BRAM_18K><DSP>{dsp}</DSP><FF>30000</FF><LUT>25000</LUT><URAM>0</URAM></Resources>
    <AvailableResources><BRAM_18K>1824</BRAM_18K><DSP>2520</DSP><FF>548160</FF><LUT>274080</LUT><URAM>0</URAM>
    </AvailableResources>
  </AreaEstimates>
  <ModuleInformation>{modules}</ModuleInformation>
</profile>"""


def rows_of(text, estimate=ESTIMATE):
    return {row.name: row for row in compare_report.compare(compare_report.read_report(text), estimate)}


def test_a_report_beside_the_estimate():
    rows = rows_of(report())
    estimated = ESTIMATE["resources"]["dsp"]
    assert (rows["DSP"].estimated, rows["DSP"].reported) == (str(estimated), "400")
    assert rows["DSP"].note == f"{400 - estimated:+d} ({(400 - estimated) / estimated:+.0%})"
    assert rows["LUT"].note.endswith("a rough model")
    assert rows["URAM"].note == "as estimated"
    assert rows["DSP of product_up"].reported == "144" and rows["DSP of product_up"].note == "as estimated"
    assert rows["cycles"].note == "within the bounds that loops have"
    assert rows["part"].note == rows["clock period, ns"].note == ""


def test_processes_of_a_whole_model_are_compared_with_modules_of_their_kernel():
    estimate = {**ESTIMATE, "dsp_by_process": {"experts_layer.product_up": 144, "attention_layer.product_up": 70}}
    modules = report().replace("product_up_block_s", "product_up_experts_block_s")
    rows = rows_of(modules, estimate)
    assert rows["DSP of experts_layer.product_up"].note == "as estimated"
    assert "DSP of attention_layer.product_up" not in rows
    with pytest.raises(compare_report.ReportError, match="lacks 'other_layer'"):
        rows_of(modules, {**estimate, "dsp_by_process": {"other_layer.product_up": 1}})


def test_cycles_and_parts_that_differ():
    rows = rows_of(report(worst="200", part="xczu7ev-ffvc1156-2-e"))
    assert rows["cycles"].note.startswith("outside")
    assert rows["part"].note.startswith("another part")
    unbounded = rows_of(report(worst="undef", part="xczu9eg:-ffvb1156:-2-e"))
    assert unbounded["cycles"].reported == "100 to ?" and unbounded["cycles"].note.startswith("within")
    assert unbounded["part"].note == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"interval": 2}, "loop up_inputs starts an iteration every 2 cycles"),
        ({"depth": 60}, None),
        ({"depth": 61}, "loop up_inputs is a pipeline of 61 stages; channels are deep enough for 60"),
        ({"estimated": "3.100"}, "the clock needs 3.1 ns"),
        ({"dsp": 2521}, "2521 DSP are needed; the part has 2520"),
    ],
)
def test_what_makes_estimates_worthless(changes, reason):
    broken = compare_report.broken_assumptions(compare_report.read_report(report(**changes)), ESTIMATE["most_stages"])
    assert [reason in one for one in broken] == ([True] if reason else [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "no XML"),
        ("<profile/>", "no UserAssignments/TopModelName"),
        (report().replace("AvailableResources", "Other"), "no AreaEstimates/AvailableResources"),
        (report().replace("<LUT>25000</LUT>", ""), "counts no LUT"),
        (report(dsp="many"), "'many' DSP"),
        (report(dsp="1" * 5000), "'1{40}' DSP"),
        (report(dsp=-1), "'-1' DSP"),
        (report(estimated="undef"), "'undef' for"),
        (report(estimated="nan"), "'nan' for"),
        ('<!DOCTYPE p [<!ENTITY a "aa">]>' + report().partition("?>")[2], "declares a document type"),
    ],
)
def test_what_is_no_report(text, message):
    with pytest.raises(compare_report.ReportError, match=message):
        compare_report.read_report(text)


def test_what_is_no_estimate():
    with pytest.raises(compare_report.ReportError, match="the estimate lacks 'part'"):
        compare_report.compare(compare_report.read_report(report()), {})


@pytest.mark.parametrize("change", [{"factors": []}, {"factors": {"dsp": 0}}, {"clock_megahertz": 10**400}])
def test_an_estimate_of_absurd_numbers_is_none(tmp_path, change, capsys):
    assert save(tmp_path, "one.json", {**ESTIMATE, **change})[0] == 2
    assert "the estimate lacks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [(report(), 0, "as estimated"), (report(depth=99), 1, "might lock up"), (None, 2, "run the")],
)
def test_the_script_needs_nothing_but_python(tmp_path, text, code, said):
    script = shutil.copy(pathlib.Path(compare_report.__file__), tmp_path)
    (tmp_path / "estimate.json").write_text(json.dumps(ESTIMATE))
    if text:
        result = tmp_path / "component" / "hls" / "syn" / "report" / "csynth.xml"
        result.parent.mkdir(parents=True)
        result.write_text(text)
    done = subprocess.run([sys.executable, "-I", "-S", script], capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def save(folder, name, estimate=ESTIMATE, **changes):
    """Compare a report with an estimate and save the calibration. Returns the exit code and the path of the file."""
    (folder / "csynth.xml").write_text(report(**changes))
    (folder / "estimate.json").write_text(json.dumps(estimate))
    arguments = [folder / "csynth.xml", folder / "estimate.json", "--save", folder / name]
    return compare_report.main([str(argument) for argument in arguments]), folder / name


def test_what_is_saved_corrects_estimates(tmp_path):
    estimated = ESTIMATE["resources"]
    (_, one), (missed, other) = save(tmp_path, "one.json", depth=31), save(tmp_path, "other.json", estimated="4.600")
    assert missed == 1
    actual = read_calibrations([one, other])
    assert actual.dsp == 400 / estimated["dsp"] and actual.lut == 25000 / estimated["lut"]
    assert actual.uram == 1, "nothing was estimated"
    assert actual.stages == 23, "31 and 17, without the first"
    assert actual.clock("XCZU9EG-ffvb1156-2-e") == pytest.approx(200) and actual.clock("xcu50") == math.inf
    part, shape = find_part("zcu102"), BlockShape(16, 64, 128, 4, 2)
    exploration = explore(shape, part, Constraints(calibration=actual))
    chosen = exploration.chosen.estimate
    plain = estimate_of(chosen.design, part, exploration.loads, 200)
    assert chosen.clock_megahertz == pytest.approx(200)
    assert chosen.resources.lut == round(plain.resources.lut * actual.lut)
    assert chosen.cycles == estimate_of(chosen.design, part, exploration.loads, 200, calibration=actual).cycles
    assert chosen.cycles.total > plain.cycles.total
    assert Constraints(calibration=actual, clock_megahertz=250).clock(part) == 250


def test_what_was_estimated_as_nothing_has_no_factor(tmp_path):
    _, path = save(tmp_path, "one.json")
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "estimated": {**result["estimated"], "dsp": 1e-300}}))
    assert read_calibrations([path]).dsp == 1


def test_corrected_estimates_are_not_corrected_twice(tmp_path):
    _, once = save(tmp_path, "once.json")
    actual = read_calibrations([once])
    corrected = estimate_of(Design(BlockShape(16, 64, 128, 4, 2)), find_part("zcu102"), [8] * 4, calibration=actual)
    assert corrected.resources.dsp == 400
    _, twice = save(tmp_path, "twice.json", estimate=corrected.as_dict())
    assert read_calibrations([twice]).dsp == pytest.approx(actual.dsp, rel=0.01)


@pytest.mark.parametrize("changes", [{"interval": 2}, {"depth": 61}])
def test_loops_that_are_built_otherwise_are_not_saved(tmp_path, changes, capsys):
    code, path = save(tmp_path, "new.json", **changes)
    assert code == 1 and not path.exists()
    assert "was not written" in capsys.readouterr().out


def test_a_file_that_is_something_else_is_not_replaced(tmp_path, capsys):
    (tmp_path / "mine.json").write_text("{}")
    assert save(tmp_path, "mine.json")[0] == 2
    assert "exists and is no calibration" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == "{}"
    assert [save(tmp_path, "new.json")[0] for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda result: [],
        lambda result: {**result, "format": "other"},
        lambda result: {**result, "stages": [99]},
        lambda result: {**result, "stages": [10**400]},
        lambda result: {**result, "reported": {**result["reported"], "lut": float("nan")}},
        lambda result: {**result, "estimated": {}},
        lambda result: {**result, "clock_megahertz": "fast"},
    ],
)
def test_what_is_no_calibration(tmp_path, change):
    _, path = save(tmp_path, "one.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(MoecError, match=r"one\.json: is no calibration"):
        read_calibrations([path])
