"""PyTorch with one thread, for copies of parts of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Context in which PyTorch uses one thread for work of the calling thread; afterwards it uses as many as before.

    PyTorch's threads spin until all have arrived, which takes longer than copying a part of a weight. With fewer
    processors than threads, as in a container with a quota, a copy would take a hundred times as long.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
