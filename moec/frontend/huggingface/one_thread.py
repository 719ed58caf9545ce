"""PyTorch with one thread, where moec has it copy parts of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The calling thread has PyTorch compute with one thread, and with as many as before afterwards; PyTorch keeps
    their number by thread.

    A part of a weight is copied in less time than PyTorch's threads take to meet, which they do by spinning: with fewer
    processors at hand than threads, as in a container with a quota, a copy takes a hundred times as long.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
