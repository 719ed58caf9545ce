"""Reports of synthesis beside estimates, as a library and as the script that projects carry."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from moec.targets.hls import compare_report
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.moe.design import BlockShape, Design
from moec.targets.hls.moe.estimate import estimate

ESTIMATE = estimate(Design(BlockShape(16, 64, 128, 4, 2)), find_part("zcu102"), [8] * 4).as_dict()
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


def rows_of(text):
    return {row.name: row for row in compare_report.compare(compare_report.read_report(text), ESTIMATE)}


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
        (report(estimated="undef"), "'undef' for"),
    ],
)
def test_what_is_no_report(text, message):
    with pytest.raises(compare_report.ReportError, match=message):
        compare_report.read_report(text)


def test_what_is_no_estimate():
    with pytest.raises(compare_report.ReportError, match="the estimate lacks 'part'"):
        compare_report.compare(compare_report.read_report(report()), {})


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [(report(), 0, "as estimated"), (report(depth=99), 1, "might lock up"), (None, 2, "run the")],
)
def test_the_script_needs_nothing_but_python(tmp_path, text, code, said):
    script = shutil.copy(pathlib.Path(compare_report.__file__), tmp_path)
    (tmp_path / "estimate.json").write_text(json.dumps(ESTIMATE))
    if text:
        found = tmp_path / "component" / "hls" / "syn" / "report" / "csynth.xml"
        found.parent.mkdir(parents=True)
        found.write_text(text)
    done = subprocess.run([sys.executable, "-I", "-S", script], capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
