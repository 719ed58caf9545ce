"""A rank that is killed, stops, fails or differs ends all others in time, each with one line that says who it was."""

from __future__ import annotations

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from moec.placing.volume import TRANSPORTS
from tests.distributed.gloo import start_ranks
from tests.distributed.rounds import TIMEOUT, run_rounds

ROOT = pathlib.Path(__file__).parent.parent.parent


def lines(ranks, survivors: list[int], seconds: float) -> list[str]:
    """The lines of surviving ranks, which end in a time, each with exit code 2 and one line."""
    try:
        assert set(ranks.codes(seconds, survivors)) == {2}, ranks.said()
        said = [ranks.said()[rank] for rank in survivors]
    finally:
        ranks.kill()
    for rank, text in zip(survivors, said, strict=True):
        assert re.fullmatch(rf"error: rank {rank} of \d \(.*\): .*\n", text), text
    return said


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("bad input", "rank 1 ended: prompts.txt: is empty; expected a prompt"),
        pytest.param("memory", "rank 1 ended: Unable to allocate", marks=pytest.mark.nightly),
        pytest.param("defect", "rank 1 ended: a defect", marks=pytest.mark.nightly),
        ("kill", "rank 1 closed its connection"),
        ("stop", "rank 1 did not answer within 4 s"),
        pytest.param("slow", "rank 1 computed for more than 4 s", marks=pytest.mark.nightly),
        pytest.param("exit", "rank 1 closed its connection", marks=pytest.mark.nightly),
    ],
)
def test_all_others_say_what_happened(fault, expected):
    ranks = start_ranks(3, run_rounds, 3, "alltoall", fault)
    for line in lines(ranks, [0, 2], TIMEOUT + 25):
        assert expected in line
        assert re.search(r"\(layer 1, (dispatch|return) of rows\)", line)


def lost_at_random(seed: int, begun: pathlib.Path) -> list[str]:
    """Kill or stop a rank at a random moment: of its start, where the seed is a multiple of 4, or of its runs."""
    generator = random.Random(seed)
    size = generator.choice([2, 3, 4])
    ranks = start_ranks(size, run_rounds, size, generator.choice(TRANSPORTS), "", str(begun))
    victim, number = generator.randrange(size), generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
    end = time.monotonic() + 60
    while seed % 4 and not begun.exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(generator.uniform(0, 1))
    os.kill(ranks.processes[victim].pid, number)
    said = lines(ranks, [rank for rank in range(size) if rank != victim], TIMEOUT + 5)
    if seed % 4:
        how = "did not answer within 4 s" if number == signal.SIGSTOP else "closed its connection"
        assert all(re.search(f"rank {victim}(, which holds the store,)? {how}", line) for line in said), said
    return said


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(3, 100))]
)
def test_a_rank_lost_at_any_moment_ends_the_others(seed, tmp_path):
    lost_at_random(seed, tmp_path / "begun")


def command(*words: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of subprocess for torchrun and the program of this folder."""
    program = ROOT / "tests" / "distributed" / "torchrun_program.py"
    return {
        "args": [sys.executable, "-m", "torch.distributed.run", *options, str(program), *words],
        "env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def torchrun(*words: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the program on three ranks."""
    options = ("--standalone", "--nproc-per-node", "3", "--max-restarts", str(restarts))
    return subprocess.run(**command(*words, options=options), timeout=300, check=False)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("words", "place"),
    [(("kill",), r"layer 1, (dispatch|return) of rows"), (("kill", "wait"), "computing")],
)
def test_torchrun_ends_and_all_survivors_say_why(words, place):
    done = torchrun(*words)
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 1 and len(said) == 2, done.stderr
    for rank, line in zip([0, 2], sorted(said), strict=True):
        assert re.fullmatch(rf"error: rank {rank} of 3 \({place}\): rank 1 (closed its connection|ended)", line), line


@pytest.mark.nightly
def test_torchrun_starts_again():
    done = torchrun("kill", restarts=1)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} is done" for rank in range(3)]


def children(process: int) -> list[int]:
    return [int(number) for number in pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.nightly
def test_an_interrupt_of_torchrun_leaves_no_rank_behind(tmp_path):
    begun = tmp_path / "begun"
    with subprocess.Popen(**command("", "long", str(begun), options=("--standalone", "--nproc-per-node", "3"))) as run:
        end = time.monotonic() + 120
        while not begun.exists() and time.monotonic() < end:
            time.sleep(0.2)
        ranks = children(run.pid)
        assert begun.exists() and len(ranks) == 3 and run.poll() is None
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
    assert run.returncode != 0
    assert not [rank for rank in ranks if pathlib.Path(f"/proc/{rank}").exists()]


@pytest.mark.nightly
@pytest.mark.parametrize(("fault", "code"), [("", 0), ("kill", 1)])
def test_launchers_of_two_nodes_run_one_job(tmp_path, fault, code):
    """They meet in a file: a port that is free now may be taken soon."""
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", str(tmp_path / "meeting"), "--rdzv-conf", "store_type=file")
    options = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "job", *meeting)
    runs = [subprocess.Popen(**command(fault, options=options)) for _ in range(2)]
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [code] * 2, said
    assert sorted(out for out, _ in said) == (["", ""] if code else [f"rank {rank} is done\n" for rank in range(2)])
    lines = [line for _, errors in said for line in errors.splitlines() if line.startswith("error")]
    assert len(lines) == code and all("rank 1 closed its connection" in line for line in lines)
