"""Machines by name, and what the host is taken for."""

from __future__ import annotations

import dataclasses

import pytest

from moec.errors import UnsupportedError
from moec.targets.cpu import machine as machine_module
from moec.targets.cpu.machine import MACHINES, Machine


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
