"""Selection of the layers that see only a window of the keys."""

from __future__ import annotations

import numpy as np

from moec.common.errors import MoecError
from moec.frontend.gguf.graph.builder import Builder


def windows_of(build: Builder, pattern: int, default: int = 0) -> list[int]:
    """List the window of each layer, 0 for one that sees all keys.

    Every ``pattern``-th layer sees all keys, unless metadata has another number, or a flag for each layer. Raises
    MoecError for other metadata.
    """
    metadata, key = build.metadata, "attention.sliding_window_pattern"
    size = metadata.whole("attention.sliding_window", default, least=0)
    listed = metadata.listed(key)
    if listed is None:
        pattern = metadata.whole(key, pattern, least=0)
        has_window = [not pattern or layer % pattern < pattern - 1 for layer in range(build.layers)]
    elif len(listed) < build.layers or not np.isin(listed, (0, 1)).all():
        raise MoecError(
            f"{metadata.where}: {key} has {len(listed)} entries for {build.layers} layers; expected one for each"
        )
    else:
        has_window = [bool(flag) for flag in listed[: build.layers]]
    return [size if windowed else 0 for windowed in has_window]
