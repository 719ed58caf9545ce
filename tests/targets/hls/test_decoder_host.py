"""The host program of a decoder, on a board that fails, and on one that computes as the reference does."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest

from moec.targets.hls.model import reference
from moec.targets.hls.model.design import model_design
from moec.targets.hls.model.project import model_files

from . import fake_xrt, model_layers

LAYERS, STREAM, UP = 0, 4, 7
"""Indices of the kernel's arguments."""
PAST = 27
"""The index of the word of a layer's record with the number of earlier tokens."""


class Kernel:
    """A kernel that writes to the streams' memory the number of earlier tokens that its call declares."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.pasts: list[int] = []
        self.state = fake_xrt.COMPLETED

    def __call__(self, *arguments):
        self.arguments = arguments
        self.pasts.append(int(np.frombuffer(arguments[LAYERS].data, "<i4")[PAST]))
        arguments[STREAM].write(np.full(64, self.pasts[-1], "<i2").tobytes(), 64 * self.places[-1])
        return self.state


class Reference:
    """A kernel that computes each call with the integer reference, on all tokens that it has received so far."""

    def __init__(self, plan, width) -> None:
        self.plan, self.width = plan, width
        self.tokens = np.zeros((0, plan.width), np.int16)
        self.rows: list[list[int]] = []

    def __call__(self, *arguments):
        _, _, layers = arguments[:3]
        records, stream = np.frombuffer(arguments[LAYERS].data, "<i4").reshape(-1, 32)[:layers], arguments[STREAM]
        count, past = records[0, [1, PAST]]
        tokens = np.frombuffer(bytes(stream.data), "<i2", count * self.width).reshape(count, self.width)
        self.tokens = np.concatenate([self.tokens[:past], tokens[:, : self.plan.width]])
        last = reference.run(self.plan, self.tokens).streams[-1]
        self.rows.append(records[:, 4].tolist())
        for head, record in zip(self.plan.heads, records[-len(self.plan.heads) :], strict=True):
            logits = reference.run_layer(head, last[-record[4] :])
            padded = np.pad(logits, ((0, 0), (0, self.width - logits.shape[1])))
            stream.write(padded.astype("<i2").tobytes(), 64 * int(record[18]))
        return fake_xrt.COMPLETED


def host_of(folder, monkeypatch, *, cached, masters=(1, 1), classes=0):
    """The globals of a decoder's host program, and the kernel of its board."""
    plan = model_layers.decoder_plan(cached=cached, classes=classes)
    lanes = 8 if classes else 16
    design = model_design(plan, lanes, 16, 4, lanes, masters)
    steps = plan.token_rows[:8] if classes else np.zeros((8, plan.width), np.int16)
    files = model_files(design, plan, steps, device="xczu9eg-ffvb1156-2-e", clock=300)
    (folder / "data").mkdir()
    for name in [name for name in files if name.startswith("data/")] + ["host.py"]:
        (folder / name).write_bytes(files[name])
    kernel = Reference(plan, design.width) if classes else Kernel()
    monkeypatch.setitem(sys.modules, "pyxrt", fake_xrt.module(kernel))
    host = runpy.run_path(str(folder / "host.py"))
    if isinstance(kernel, Kernel):
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
    actual = board.run(tokens[:1], sequence)
    assert actual[0, 0] == np.float32(5 * host["LAYOUT"]["stream_scale"])
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
    board.run_steps(host["stream_in"](tokens), host["records"](4, 0, 4))
    with pytest.raises(ValueError, match="keys of 4 tokens are no longer on the board"):
        board.run(tokens, second)


def test_a_design_without_a_cache_takes_whole_sequences(tmp_path, monkeypatch):
    host, _ = host_of(tmp_path, monkeypatch, cached=0)
    board, sequence = host["Board"]("model.xclbin"), host["Sequence"]()
    tokens = np.zeros((3, host["WIDTH"]), np.float32)
    board.run(tokens, sequence)
    with pytest.raises(ValueError, match="1 tokens behind 3: this design keeps no keys"):
        board.run(tokens[:1], sequence)


@pytest.mark.parametrize("cached", [12, 0])
def test_ids_of_a_prompt_become_the_most_probable_ids_behind_it(cached, tmp_path, monkeypatch, capsys):
    """Every fourth row of 48 bytes begins a beat, so heads also compute the rows from the last such row on."""
    host, kernel = host_of(tmp_path, monkeypatch, cached=cached, classes=40)
    plan, board, prompt = kernel.plan, host["Board"]("model.xclbin"), [7, 39, 0]

    def logits(ids):
        return reference.run(plan, plan.token_rows[np.array(ids)]).output

    expected = list(prompt)
    for _ in range(4):
        expected.append(int(logits(expected)[-1].argmax()))
    assert board.generate(prompt, 4) == expected[3:]
    assert kernel.rows[0] == [3] * 6
    assert len(kernel.tokens) == 6
    sequence = host["Sequence"]()
    actual = board.run(np.array(expected[:6]), sequence)
    np.testing.assert_array_equal(actual, logits(expected[:6]) * np.float32(plan.output_scale))
    assert (kernel.rows[-1], sequence.past) == ([6] * 6, 6)
    assert board.next(expected[:5], host["Sequence"]()) == expected[5]
    assert kernel.rows[-1] == [5] * 4 + [1] * 2
    assert host["main"](["generate", "model.xclbin", "2", *map(str, prompt)]) == 0
    assert capsys.readouterr().out.split() == [str(one) for one in expected[3:5]]
    for ids, said in (([40], "expected up to 8, from 0 to 39"), ([-1], "from 0"), ([], "expected one at least")):
        with pytest.raises(ValueError, match=said):
            board.generate(ids, 1)


@pytest.mark.parametrize(("cached", "room"), [(12, 12), (0, 8)])
def test_ids_that_have_no_room_are_refused_before_any_is_computed(cached, room, tmp_path, monkeypatch, capsys):
    host, kernel = host_of(tmp_path, monkeypatch, cached=cached, classes=40)
    board, prompt = host["Board"]("model.xclbin"), [7] * (room - 1)
    assert len(board.generate(prompt, 2)) == 2
    calls = len(kernel.rows)
    with pytest.raises(ValueError, match=rf"3 ids behind {room - 1}; expected .* room for {room}"):
        board.generate(prompt, 3)
    assert len(kernel.rows) == calls
    for arguments, said in (
        (["3", *map(str, prompt)], "3 ids behind"),
        (["1", "40"], "from 0 to 39"),
        (["x", "1"], "'x'"),
    ):
        monkeypatch.setattr(sys, "argv", ["host.py", "generate", "model.xclbin", *arguments])
        with pytest.raises(SystemExit, match=r"^2$"):
            runpy.run_path(str(tmp_path / "host.py"), run_name="__main__")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line


def test_a_board_is_checked_against_the_reference(tmp_path, monkeypatch, capsys):
    host, kernel = host_of(tmp_path, monkeypatch, cached=12, classes=40)
    assert host["main"](["check", "model.xclbin"]) == 0
    assert "5 tokens behind 0: 0 numbers differ" in capsys.readouterr().out
    kernel.plan = model_layers.decoder_plan(cached=12, classes=24)
    assert host["main"](["check", "model.xclbin"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_stripes_of_weights_are_arguments_in_order(tmp_path, monkeypatch):
    host, kernel = host_of(tmp_path, monkeypatch, cached=12, masters=(8, 4))
    board = host["Board"]("model.xclbin")
    board.run(np.zeros((1, host["WIDTH"]), np.float32), host["Sequence"]())
    stripes = [f"up_{place}" for place in range(8)] + [f"down_{place}" for place in range(4)]
    for name, argument in zip([*stripes, "turns"], kernel.arguments[UP:], strict=False):
        assert bytes(argument.data) == (tmp_path / "data" / f"{name}.bin").read_bytes()
    assert kernel.arguments[-1] is kernel.arguments[STREAM]
    assert len(kernel.arguments) == UP + 12 + 1 + 4 + 1
