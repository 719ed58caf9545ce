"""The table of FPGAs, and the pace of their memories for a design."""

from __future__ import annotations

import dataclasses

import pytest

from moec.common.errors import MoecError
from moec.targets.hls.design.attention import AttentionShape
from moec.targets.hls.hardware.parts import PARTS, find_part
from moec.targets.hls.hardware.ports import MOE_MASTERS, connect, model_ports


@pytest.mark.parametrize("name", ["zcu102", "ZCU102", "xczu9eg", "xczu9eg-ffvb1156-2-e"])
def test_a_part_is_found_by_board_and_device(name):
    assert find_part(name).board == "zcu102"


def test_an_unknown_part_lists_the_known_ones():
    with pytest.raises(MoecError, match=r"unknown FPGA part 'zcu999'.*kv260.*zcu102 \(xczu9eg-ffvb1156-2-e\).*u280"):
        find_part("zcu999")


def test_all_parts_have_sources_and_names_of_their_own():
    names = [name.lower() for part in PARTS for name in part.names]
    assert len(names) == len(set(names)) == 3 * len(PARTS)
    assert all(part.source and part.memory.source for part in PARTS)
    assert [part.dsp for part in PARTS] == sorted(part.dsp for part in PARTS)


def pace_of(name, clock, **share):
    return connect(find_part(name), MOE_MASTERS, clock, **share).loaders


def test_a_port_of_128_bits_delivers_a_beat_in_four_cycles():
    assert pace_of("zcu102", 300).cycles_per_beat == 4
    assert pace_of("zcu102", 300, memory_share=0.5).cycles_per_beat == 8


def test_a_channel_of_high_bandwidth_memory_has_a_clock_of_its_own():
    assert pace_of("u280", 300).cycles_per_beat == pytest.approx(64 * 300e6 / 14.4e9)
    assert pace_of("u280", 100).cycles_per_beat == 1


def test_the_busiest_masters_have_ports_of_their_own():
    card, board = (connect(find_part(name), MOE_MASTERS, 300).of for name in ("u50", "zcu102"))
    assert list(card.values()) == [f"HBM[{port}]" for port in range(5)]
    assert list(board.values()) == ["HP0", "HP1", "HP2", "HP3", "HP3"]
    assert board["gmem_tokens"] == board["gmem_residual"]


@pytest.mark.parametrize("part", ["u50", "zcu102"])
def test_the_streams_of_a_whole_model_are_one_buffer_at_one_port(part):
    up, down, *streams = model_ports(find_part(part).memory).values()
    assert len({up, down, *streams}) == 3
    assert len(set(streams)) == 1


def test_loaders_on_one_port_share_it():
    part = find_part("zcu104")
    memory = dataclasses.replace(part.memory, ports=1)
    assert connect(dataclasses.replace(part, memory=memory), MOE_MASTERS, 300).loaders.cycles_per_beat == 8


@pytest.mark.parametrize(("clock", "limited"), [(300, False), (301, True)])
def test_all_ports_together_deliver_no_more_than_the_memory_has(clock, limited):
    """At 300 MHz, four ports of 16 bytes per cycle ask for exactly the 19.2 GB/s that the DDR4 has."""
    ports = connect(find_part("zcu102"), MOE_MASTERS, clock)
    assert ports.share == 0.25
    assert (ports.total_share is not None) == limited
    assert ports.total_cycles_per_beat == pytest.approx(clock / 300)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_no_share_of_the_bandwidth(share):
    with pytest.raises(ValueError, match="memory share"):
        pace_of("u50", 300, memory_share=share)


def test_the_caches_of_a_decoder_are_not_where_its_streams_are():
    """On the four ports of a ZCU102, rotary embeddings share the streams' port, and keys and values share another."""
    shape = AttentionShape(8, 24, 4, 8, "rms", causal=True, turned=True, cached=16)
    ports = model_ports(find_part("zcu102").memory, shape)
    assert [ports[f"gmem_{name}"] for name in ("up", "down", "keys", "values", "turns", "results")] == [
        *("HP0", "HP1", "HP2", "HP2", "HP3", "HP3")
    ]
    alveo = model_ports(find_part("u55c").memory, shape)
    assert len(set(alveo.values())) == 6
