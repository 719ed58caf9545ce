"""The alpha-beta model of links, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.predicting.links import FREE, Link, Links, parse_link

FAST, SLOW = Link(100.0, 1.0), Link(10.0, 5.0)


def test_a_rank_waits_for_what_it_sends_or_receives_whichever_is_more():
    sent = np.array([[0, 300], [100, 0]])
    assert Links(FAST, SLOW).alltoall(sent).tolist() == [4.0, 4.0]
    three = np.array([[0, 100, 100], [0, 0, 0], [0, 0, 0]])
    assert Links(FAST, SLOW).alltoall(three).tolist() == [3.0, 2.0, 2.0]


def test_links_inside_and_between_nodes_work_at_once():
    """Ranks 0 and 1 are a node, 2 and 3 the other."""
    sent = np.zeros((4, 4))
    sent[0, 1], sent[0, 2], sent[0, 3] = 1000, 10, 10
    assert Links(FAST, SLOW, nodes=2).alltoall(sent).tolist() == [11.0, 11.0, 6.0, 6.0]
    assert Links(FAST, SLOW, nodes=4).alltoall(np.zeros((4, 4))).tolist() == [5.0] * 4, "none is inside of a node"


def test_an_empty_exchange_takes_a_latency_and_one_rank_none():
    assert Links(FAST, SLOW).alltoall(np.zeros((2, 2))).tolist() == [1.0, 1.0]
    assert Links(FAST, SLOW).alltoall(np.zeros((1, 1))).tolist() == [0.0]
    assert Links(FREE, FREE).alltoall(np.full((2, 2), 10**12)).tolist() == [0.0, 0.0]


def test_gloo_takes_a_latency_more():
    links = Links(FAST, SLOW, engine="gloo")
    assert links.alltoall(np.array([[0, 300], [100, 0]])).tolist() == [5.0, 5.0]
    assert links.alltoall(np.zeros((1, 1))).tolist() == [0.0]


def test_bandwidth_alone_is_multiplied():
    assert Links(FAST, SLOW, 2, "gloo").faster(2) == Links(Link(200.0, 1.0), Link(20.0, 5.0), 2, "gloo")


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("50GB/s,5us", Link(50e9, 5e-6)),
        ("1 Gbit/s, 100 µs", Link(0.125e9, 100e-6)),
        ("1.5MBps,2ms", Link(1.5e6, 2e-3)),
        ("100Gbps,0ns", Link(12.5e9, 0.0)),
    ],
)
def test_links_are_parsed(text, link):
    parsed = parse_link("--link", text)
    assert (parsed.bandwidth, parsed.latency) == pytest.approx((link.bandwidth, link.latency))


@pytest.mark.parametrize("text", ["", "50GB/s", "0GB/s,5us", "-1GB/s,5us", "50GB,5us", "50GB/s,5", "50XB/s,5us"])
def test_other_text_is_no_link(text):
    with pytest.raises(MoecError, match=r"^--link is .*; expected a bandwidth and a latency"):
        parse_link("--link", text)
