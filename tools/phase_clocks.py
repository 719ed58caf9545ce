"""Profile of a kernel's cycles: clocks around everything that waits, inserted into its standalone program."""

from __future__ import annotations

import re

PHASES = {
    "mbarrier.try_wait": "waits for a stage",
    "wgmma.wait_group": "waits for products",
    "cp.async.wait_group": "waits for copies",
    "__syncthreads()": "waits for the block",
}
"""Marks in the bodies of waiting functions, and the meaning of the wait."""
_GROUPS = 8
_FUNCTION = re.compile(
    r"^[^\n]*\b(?P<kind>__device__|__global__)\b[^\n]*\{\n(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL
)
_AT_THE_END = '  check(cudaDeviceSynchronize(), "the kernel");\n'
_CLOCKS = f"""
// Cycles of thread 0 of each 128 threads, of all blocks: the whole kernel, and what waits.
__device__ unsigned long long kernel_cycles[{_GROUPS}][{1 + len(PHASES)}];

__device__ inline long long device_clock() {{
#ifdef __CUDA_ARCH__
  return clock64();
#else
  return 0;  // the host, whose half of nvcc does not know it
#endif
}}

struct PhaseClock {{
  int phase;
  long long begin;
  __device__ explicit PhaseClock(int which) : phase(which), begin(device_clock()) {{}}
  __device__ ~PhaseClock() {{
    const unsigned long long cycles = device_clock() - begin;
    if (threadIdx.x % 128 == 0) atomicAdd(&kernel_cycles[threadIdx.x / 128][phase], cycles);
  }}
}};

"""


def clocked(program: str) -> str:
    """Insert clocks into the CUDA C of a standalone program. It then also prints, for each group of 128 threads, the
    share of its cycles in each of ``PHASES``. Raises ValueError for a text without a kernel and its ``main``."""
    starts = [match for match in _FUNCTION.finditer(program) if _phase(match) is not None]
    if _AT_THE_END not in program or not any(match["kind"] == "__global__" for match in starts):
        raise ValueError("expected a program of one kernel, as moec inspect --emit standalone writes it")
    for match in reversed(starts):
        at = match.start("body")
        program = program[:at] + f"  const PhaseClock phase_clock({_phase(match)});\n" + program[at:]
    at = starts[0].start()
    program = program[:at] + _CLOCKS + program[at:]
    return program.replace(_AT_THE_END, _AT_THE_END + _report())


def _phase(function: re.Match[str]) -> int | None:
    """Number the phase of a function: 0 for the kernel, None for one that does not wait."""
    if function["kind"] == "__global__":
        return 0
    return next((number for number, sign in enumerate(PHASES, 1) if sign in function["body"]), None)


def _report() -> str:
    names = ", ".join(f'"{name}"' for name in PHASES.values())
    return f"""  const char* phase_names[] = {{{names}}};
  unsigned long long cycles[{_GROUPS}][{1 + len(PHASES)}];
  check(cudaMemcpyFromSymbol(cycles, kernel_cycles, sizeof cycles), "the clocks");
  for (int group = 0; group < {_GROUPS}; ++group) {{
    if (cycles[group][0] == 0) continue;
    std::printf("threads %d to %d: %llu cycles", group * 128, group * 128 + 127, cycles[group][0]);
    for (int phase = 0; phase < {len(PHASES)}; ++phase)
      std::printf(", %s %.1f%%", phase_names[phase], 100.0 * cycles[group][phase + 1] / cycles[group][0]);
    std::printf("\\n");
  }}
"""
