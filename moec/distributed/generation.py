"""Texts on several ranks: each rank continues some of the prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from moec.common.errors import InputError
from moec.distributed.model import RankedModel
from moec.distributed.values import gathered_data
from moec.runtime import generation
from moec.runtime.model import CompiledModel
from moec.runtime.prompt_row import Generation, OnText


def generate(
    model: CompiledModel, prompts: Sequence[Any], *, on_text: OnText | None = None, **options: Any
) -> list[Generation]:
    """Continue prompts as :func:`moec.generate`. On ranks, rank r of R continues those whose index is r modulo R, and
    ``on_text`` is called for each finished text on rank 0; every rank returns all texts. Raises InputError for drafts
    and prompt caches on ranks."""
    if not isinstance(model, RankedModel):
        return generation.generate(model, prompts, on_text=on_text, **options)
    for name in ("drafts", "prompt_cache"):
        if options.get(name) is not None:
            raise InputError(f"{name} is for models on one rank; generate without it, or run the artifact on one")
    places = range(model.group.rank, len(prompts), model.group.size)
    with model.apart():
        own = generation.generate(model, prompts, places=places, **options)
    data = [dataclasses.asdict(dataclasses.replace(text, prompt="")) for text in own]
    parts = gathered_data(model.group, data, "gathering of results")
    texts = [
        Generation.of({**parts[place % model.group.size][place // model.group.size], "prompt": prompt})
        for place, prompt in enumerate(prompts)
    ]
    if on_text is not None and model.is_first:
        for place, text in enumerate(texts):
            on_text(place, text.text)
    return texts
