"""Fibers take turns, keep their state, and cannot grow into each other's stacks."""

from __future__ import annotations

import pathlib
import shutil
import signal
import subprocess

import pytest

import moec.simulators

HEADERS = pathlib.Path(moec.simulators.__file__).parent / "fibers"
PROGRAM = """
#include <cstdio>
#include <cstdlib>

#include "context.h"
#include "stacks.h"

constexpr size_t bytes = 64 << 10;
fibers::Context back, contexts[3];
int running;

void count() {
  const int me = running;
  for (double sum = me; sum < 30; sum += 10) {
    std::printf("%d:%g ", me, sum);
    fibers::switch_context(contexts[me], back);
  }
  std::exit(0);
}

int main() {
  fibers::Stacks stacks(3, bytes, 1);
  for (int i = 0; i < 3; ++i) fibers::prepare_context(contexts[i], stacks[i], bytes, count);
  stacks[1][OFFSET] = 1;
  for (;; running = (running + 1) % 3) fibers::switch_context(back, contexts[running]);
}
"""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def _run(folder: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    source, program = folder / "program.cpp", folder / "program"
    source.write_text(PROGRAM)
    subprocess.run(["g++", "-std=c++17", "-O1", f"-I{HEADERS}", *options, str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("switch", [(), ("-DFIBERS_PORTABLE_SWITCH",)], ids=["assembly", "ucontext"])
def test_fibers_take_turns(tmp_path, switch):
    done = _run(tmp_path, "-DOFFSET=bytes-1", *switch)
    assert done.returncode == 0
    assert done.stdout.split() == [f"{fiber}:{step + fiber}" for step in (0, 10, 20) for fiber in range(3)]


def test_the_lowest_page_of_a_stack_cannot_be_written(tmp_path):
    assert _run(tmp_path, "-DOFFSET=0").returncode == -signal.SIGSEGV
