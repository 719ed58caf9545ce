"""Altered manifests with a valid digest, as a forger would make them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from moec.runtime.manifest import MANIFEST, Manifest, digest_of_content, print_manifest
from moec.runtime.read_manifest import parse_manifest


def signed(content: dict[str, Any]) -> str:
    """Write a manifest with this content and the digest that belongs to it."""
    content.pop("digest", None)
    return json.dumps({**content, "digest": digest_of_content(content)})


def rewrite_manifest(path: pathlib.Path, **changes) -> None:
    """Change fields of an artifact's manifest."""
    manifest = parse_manifest((path / MANIFEST).read_bytes(), "test")
    for name, value in changes.items():
        setattr(manifest, name, value)
    (path / MANIFEST).write_text(print_manifest(manifest))


def rewrite_program(path: pathlib.Path, **changes) -> None:
    """Change fields of the only program in an artifact's manifest."""
    (program,) = manifest_of(path).programs
    rewrite_manifest(path, programs=[dataclasses.replace(program, **changes)])


def rewrite_batch(path: pathlib.Path, **changes) -> None:
    """Change fields of the program of batches in an artifact's manifest."""
    batch = manifest_of(path).batch
    assert batch is not None
    rewrite_manifest(path, batch=dataclasses.replace(batch, program=dataclasses.replace(batch.program, **changes)))


def manifest_of(path: pathlib.Path) -> Manifest:
    return parse_manifest((path / MANIFEST).read_bytes(), "test")
