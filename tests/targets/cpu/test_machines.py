"""Machines by name, and what the host is taken for."""

from __future__ import annotations

import dataclasses
import re

import pytest

from moec.common.errors import UnsupportedError
from moec.targets.cpu.hardware import machine as machine_module
from moec.targets.cpu.hardware.machine import MACHINES, Machine
from moec.targets.cpu.kernels.dot import byte_dot, byte_words
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel


def test_machines_are_known_by_the_names_of_targets():
    assert all(Machine.for_name(name).name == name for name in MACHINES)
    with pytest.raises(UnsupportedError, match=r"avx1024.*use one of native, sse4"):
        Machine.for_name("avx1024")


@pytest.mark.parametrize(
    ("features", "expected", "extra"),
    [("neon dotprod i8mm", "neon", "i8mm"), ("neon", "neon", None)],
)
def test_the_host_is_the_widest_machine_with_its_extras(features, expected, extra, monkeypatch):
    available = set(features.split())
    monkeypatch.setattr(machine_module, "host_has", available.issuperset)
    monkeypatch.setattr(machine_module.platform, "machine", lambda: "aarch64")
    host = Machine.host()
    assert (host.name, extra is None or extra in host.features) == (expected, True)
    assert set(host.features) == available


@pytest.mark.parametrize(("largest", "expected"), [("sse4", "sse4"), ("avx2", "avx2")])
def test_the_host_has_no_features_that_the_processor_lacks(largest, expected, monkeypatch):
    available = set(MACHINES[largest].features)
    monkeypatch.setattr(machine_module, "host_has", available.issuperset)
    monkeypatch.setattr(machine_module.platform, "machine", lambda: "x86_64")
    host = Machine.host()
    assert host == dataclasses.replace(MACHINES[expected], triple=host.triple)


def test_a_processor_older_than_all_machines_is_refused(monkeypatch):
    monkeypatch.setattr(machine_module, "host_has", lambda features: False)
    with pytest.raises(UnsupportedError, match=r"neither SSE4.2 nor NEON; name the instruction set"):
        Machine.host()


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("sse4", "pmaddwd"),
        ("avx2", "vpmaddwd"),
        ("avx2vnni", "vpdpbusd"),
        ("avx512", "vpmaddwd"),
        ("avx512vnni", "vpdpbusd"),
        ("neondotprod", "sdot"),
        ("neoni8mm", "usdot"),
    ],
)
def test_products_of_bytes_use_the_instruction_of_the_machine(name, instruction):
    import tvm
    from tvm.script import tirx as T

    machine = Machine.for_name(name)

    def body(weights, activations, sums) -> None:
        words = [byte_words(buffer, [0], machine.lanes) for buffer in (weights, activations)]
        lanes = T.ramp(0, 1, machine.lanes)
        T.buffer_store(sums, byte_dot(machine)(sums[lanes], *words), [lanes])

    kernel = emit_kernel(
        [
            Parameter("weights", (4 * machine.lanes,), "uint8"),
            Parameter("activations", (4 * machine.lanes,), "int8"),
            Parameter("sums", (machine.lanes,), "int32"),
        ],
        body,
    )
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    assembly = tvm.tirx.build(module, target=tvm.target.Target(machine.llvm)).inspect_source("asm")
    assert re.search(rf"\b{instruction}\b", assembly)
