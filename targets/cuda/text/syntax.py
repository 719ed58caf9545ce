"""Search for kernels, helpers and brackets in CUDA C that TVM generated."""

from __future__ import annotations

import re

HELPER = re.compile(
    r"^(?:template <[^\n]*>\n)?__forceinline__ __device__ [^\n(]*?\b(?P<name>\w+)\((?P<parameters>[^)]*)\) \{\n"
    r"(?P<body>.*?)^}\n",
    re.MULTILINE | re.DOTALL,
)
KERNEL = re.compile(
    r'^extern "C" __global__ void (?:__\w+__\([^)]*\) )*(?P<name>\w+)\([^;{]*\) \{\n.*?^}\n', re.MULTILINE | re.DOTALL
)


def closing(text: str, begin: int) -> int:
    """The position of the bracket that closes the one opened just before ``begin``. Raises ValueError if there is
    none."""
    depth = 0
    for position in range(begin, len(text)):
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(text[position], 0)
        if depth < 0:
            return position
    raise ValueError("brackets do not match")


def bare(text: str) -> str:
    """The expression without parentheses that enclose all of it."""
    return text[1:-1] if text.startswith("(") and closing(text, 1) == len(text) - 1 else text
