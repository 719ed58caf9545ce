"""Keys of variants, by which a sweep recognises what it has computed before."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moec.common.errors import MoecError
from moec.common.version import VERSION
from moec.frontend.onnx.importer import files_of
from moec.passes import pipeline
from moec.tools.data import Data, TextOptions
from moec.tools.metrics import metric_named


def key_name(key: Mapping[str, Any]) -> str:
    """Name of the artifact of a key: the same for equal keys."""
    return f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]}.moec"


def written_out(chain: str) -> str:
    """Write a pipeline with its levels as passes. Raises MoecError for one that cannot be parsed."""
    return pipeline.print_pipeline(pipeline.parse(chain))


class Keys:
    """Keys of variants, which hold everything except the machine that the numbers depend on."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        data: Sequence[str | os.PathLike[str]],
        labels: str | os.PathLike[str] | None,
        text: TextOptions,
        settings: dict[str, Any],
    ) -> None:
        for name in settings["metrics"]:
            metric_named(name)
        self._common = {
            "moec": VERSION,
            "model": [_sha256(path) for path in files_of(model)],
            "data": [Data(path, (), text).sha256() for path in data],
            "labels": None if labels is None else _sha256(pathlib.Path(labels)),
            "text": [text.tokenizer_sha256(), text.length, text.batch, text.limit],
            **settings,
        }
        self._hash = functools.cache(_sha256)

    def of(self, chain: str) -> dict[str, Any]:
        """Make the key of a pipeline. Raises MoecError for one that cannot be parsed."""
        files = {path: self._hash(pathlib.Path(path)) for part in pipeline.parse(chain) for path in _files(part)}
        return {**self._common, "pipeline": written_out(chain), "files": files}


def _files(options: Any) -> Iterator[str]:
    """List the files that a pass's options name."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, str) and pathlib.Path(value).is_file():
            yield value


def _sha256(path: pathlib.Path) -> str:
    from moec.runtime.artifact import checksum

    try:
        return checksum(path).sha256
    except OSError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error
