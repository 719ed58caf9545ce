"""The table of FPGAs, and how fast their memories are for a design."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.targets.hls.estimate import pace_of
from moec.targets.hls.parts import PARTS, find_part


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


def test_a_port_of_128_bits_delivers_a_beat_in_four_cycles():
    assert pace_of(find_part("zcu102"), 300).cycles_per_beat == 4
    assert pace_of(find_part("zcu102"), 300, memory_share=0.5).cycles_per_beat == 8


def test_a_channel_of_high_bandwidth_memory_has_a_clock_of_its_own():
    card = find_part("u280")
    assert pace_of(card, 300).cycles_per_beat == pytest.approx(64 * 300e6 / 14.4e9)
    assert pace_of(card, 100).cycles_per_beat == 1


def test_masters_share_what_the_memory_has():
    memory = find_part("zcu104").memory
    assert memory.bytes_per_second(2, 300) == 16 * 300e6
    assert memory.bytes_per_second(8, 300) == pytest.approx(19.2e9 / 8)
    assert memory.bytes_per_second(8, 100) == 16 * 100e6 / 2


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_no_share_of_the_bandwidth(share):
    with pytest.raises(ValueError, match="memory share"):
        pace_of(find_part("u50"), 300, share)
