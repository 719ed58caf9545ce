"""Measuring the limits of this machine, and kernels of nothing but multiply-adds for every machine."""

from __future__ import annotations

import pytest
import tvm

from moec.common.cores import available_cores
from moec.targets.cpu.hardware.machine import MACHINES
from moec.targets.cpu.kernels.peak import instructions, operations_per_round, peak
from moec.targets.cpu.roofline import MemoryReader, measure_roofline, page_kinds


@pytest.fixture(scope="module")
def roofline():
    return measure_roofline()


def test_every_limit_is_measured(roofline):
    assert roofline.threads == len(available_cores())
    assert list(roofline.bandwidths) == page_kinds()
    assert all(1e8 < bandwidth < 1e13 for bandwidth in roofline.bandwidths.values())
    assert all(1e9 < one.operations_per_second < 1e15 for one in roofline.peaks)
    assert roofline.peak("int8") >= roofline.peak("float32")


def test_reading_faster_than_the_least_is_no_accident():
    reader = MemoryReader(threads=1, size=1 << 22)
    assert all(reader.read() > 1e8 for _ in range(3))


@pytest.mark.parametrize("name", MACHINES)
def test_instructions_assemble_for_every_machine(name):
    machine = MACHINES[name]
    actual = instructions(machine)
    assert any(one.arithmetic == "float32" for one in actual)
    for one in actual:
        module = tvm.IRModule({"kernel": peak(one, machine).with_attr("global_symbol", "kernel")})
        built = tvm.tirx.build(module, target=tvm.target.Target(machine.llvm))
        mnemonic = one.text.split("}} ")[-1].split()[0]
        sums = one.registers.count - 2
        assert built.inspect_source("asm").count(mnemonic) == sums == operations_per_round(one) // one.operations


def test_features_choose_the_instructions():
    assert {instruction.arithmetic for instruction in instructions(MACHINES["avx2"])} == {"float32"}
    assert {instruction.arithmetic for instruction in instructions(MACHINES["avx512bf16"])} == {
        "float32",
        "int8",
        "bfloat16",
    }
