"""The host program of a decoder, on a board that fails."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest

from moec.targets.hls.model.design import model_design
from moec.targets.hls.model.project import model_files

from . import fake_xrt, model_layers

LAYERS, STREAM, UP = 0, 4, 7
"""Arguments of the kernel."""
PAST = 27
"""A word of a layer's record."""


class Kernel:
    """Leaves in the streams' memory how many tokens it was told are in front of those of the call."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.pasts: list[int] = []
        self.state = fake_xrt.COMPLETED

    def __call__(self, *arguments):
        self.arguments = arguments
        self.pasts.append(int(np.frombuffer(arguments[LAYERS].data, "<i4")[PAST]))
        arguments[STREAM].write(np.full(64, self.pasts[-1], "<i2").tobytes(), 64 * self.places[-1])
        return self.state


def host_of(folder, monkeypatch, *, cached, masters=(1, 1)):
    """The names of a decoder's host program, and the kernel of its board."""
    plan = model_layers.decoder_plan(cached=cached)
    design = model_design(plan, 16, 16, 4, 16, masters)
    steps = np.zeros((8, plan.width), np.int16)
    files = model_files(design, plan, steps, device="xczu9eg-ffvb1156-2-e", clock=300)
    (folder / "data").mkdir()
    for name in [name for name in files if name.startswith("data/")] + ["host.py"]:
        (folder / name).write_bytes(files[name])
    kernel = Kernel()
    monkeypatch.setitem(sys.modules, "pyxrt", fake_xrt.module(kernel))
    host = runpy.run_path(str(folder / "host.py"))
    kernel.places = host["LAYOUT"]["outputs"]
    return host, kernel


def test_tokens_of_a_call_that_failed_may_be_given_again(tmp_path, monkeypatch):
    host, kernel = host_of(tmp_path, monkeypatch, cached=12)
    board, sequence = host["Board"]("model.xclbin"), host["Sequence"]()
    tokens = np.zeros((5, host["WIDTH"]), np.float32)
    board.run(tokens, sequence)
    kernel.state = "abort"
    with pytest.raises(RuntimeError, match="ended in the state abort"):
        board.run(tokens[:1], sequence)
    assert sequence.past == 5
    kernel.state = fake_xrt.COMPLETED
    found = board.run(tokens[:1], sequence)
    assert found[0, 0] == np.float32(5 * host["LAYOUT"]["stream_scale"])
    assert (kernel.pasts, sequence.past) == ([0, 5, 5], 6)


def test_a_board_holds_the_keys_of_one_sequence(tmp_path, monkeypatch):
    host, kernel = host_of(tmp_path, monkeypatch, cached=12)
    board, first, second = host["Board"]("model.xclbin"), host["Sequence"](), host["Sequence"]()
    tokens = np.zeros((4, host["WIDTH"]), np.float32)
    board.run(tokens, first)
    kernel.state = "abort"
    with pytest.raises(RuntimeError):
        board.run(tokens, second)  # may have overwritten keys before it failed
    kernel.state = fake_xrt.COMPLETED
    with pytest.raises(ValueError, match="keys of 4 tokens are no longer on the board"):
        board.run(tokens, first)
    board.run(tokens, second)
    assert (first.past, second.past, kernel.pasts) == (4, 4, [0, 0, 0])
    board.run_steps(host["stream_in"](tokens), 4, 0)
    with pytest.raises(ValueError, match="keys of 4 tokens are no longer on the board"):
        board.run(tokens, second)


def test_a_design_without_a_cache_takes_whole_sequences(tmp_path, monkeypatch):
    host, _ = host_of(tmp_path, monkeypatch, cached=0)
    board, sequence = host["Board"]("model.xclbin"), host["Sequence"]()
    tokens = np.zeros((3, host["WIDTH"]), np.float32)
    board.run(tokens, sequence)
    with pytest.raises(ValueError, match="1 tokens behind 3: this design keeps no keys"):
        board.run(tokens[:1], sequence)


def test_stripes_of_weights_are_arguments_in_order(tmp_path, monkeypatch):
    host, kernel = host_of(tmp_path, monkeypatch, cached=12, masters=(8, 4))
    board = host["Board"]("model.xclbin")
    board.run(np.zeros((1, host["WIDTH"]), np.float32), host["Sequence"]())
    stripes = [f"up_{place}" for place in range(8)] + [f"down_{place}" for place in range(4)]
    for name, argument in zip([*stripes, "turns"], kernel.arguments[UP:], strict=False):
        assert bytes(argument.data) == (tmp_path / "data" / f"{name}.bin").read_bytes()
    assert kernel.arguments[-1] is kernel.arguments[STREAM]
    assert len(kernel.arguments) == UP + 12 + 1 + 4 + 1
