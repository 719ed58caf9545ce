"""The handshake of ranks before they begin: all of them run the same artifact, version, placement and transport."""

from __future__ import annotations

import collections
import datetime
import json
from collections.abc import Mapping
from typing import Any

from moec.common.errors import MoecError


def shake_hands(store: Any, rank: int, size: int, facts: Mapping[str, str], seconds: float) -> None:
    """Compare the facts of all ranks, such as ``{"artifact": DIGEST}``, in a store of torch.distributed.

    Raises MoecError, with the same line on all ranks, where some have others than most. Waits for all ranks, at most
    for a time, as the store's errors say."""
    keys = [f"hello/{other}" for other in range(size)]
    store.set(keys[rank], json.dumps(dict(facts)))
    store.wait(keys, datetime.timedelta(seconds=seconds))
    everyone = [json.loads(store.get(key)) for key in keys]
    differences = [difference for name in facts if (difference := _difference(name, everyone))]
    if differences:
        raise MoecError(
            f"{'; '.join(differences)}: start all ranks with the same artifact, options and version of moec"
        )


def ranks_in_words(ranks: list[int] | tuple[int, ...]) -> str:
    """Write ``rank 3`` or ``ranks 1, 3``."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _difference(name: str, everyone: list[dict[str, str]]) -> str | None:
    values = [facts.get(name, "none") for facts in everyone]
    usual = collections.Counter(values).most_common(1)[0][0]
    others = {value: [rank for rank, own in enumerate(values) if own == value] for value in values if value != usual}
    if not others:
        return None
    texts = [f"{ranks_in_words(ranks)} {_have(ranks)} {name} {value}" for value, ranks in others.items()]
    most = [rank for rank, value in enumerate(values) if value == usual]
    return f"{', '.join(texts)}, {ranks_in_words(most)} {_have(most)} {usual}"


def _have(ranks: list[int]) -> str:
    return "have" if len(ranks) > 1 else "has"
