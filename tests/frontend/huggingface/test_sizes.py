"""Sizes in a config.json that its files cannot fill are refused before anything is allocated."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from moec.common.errors import MoecError
from moec.frontend.huggingface.folder import import_folder
from moec.frontend.huggingface.sizes import Holdings, check_numbers, limited
from tests.frontend.huggingface.models import change_config, mixtral, saved, torch

FEW = Holdings(tensors=2, bytes=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return saved(mixtral(num_hidden_layers=1), tmp_path_factory.mktemp("mixtral"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but its files hold"),
        ({"hidden_size": 10**30}, "hidden_size has 31 digits"),
        ({"rope_scaling": {"factor": [1, {"x": -(2**60)}]}}, "x has 20 digits"),
        ({"vocab_size": 2**40}, r"asks for .*embed_tokens.weight \[1099511627776, 32\], which is more than all"),
        ({"head_dim": 2**31}, "asks for a table of 4096 MiB"),
        ({"num_local_experts": 2**40}, "asks for .*, which is more than all of its files hold"),
    ],
)
def test_what_files_cannot_fill(folder: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    kept = (folder / "config.json").read_text()
    change_config(folder, **changes)
    try:
        with pytest.raises(MoecError, match=message) as caught:
            import_folder(folder)
    finally:
        (folder / "config.json").write_text(kept)
    assert str(caught.value).startswith(f"{folder}: config.json") and "\n" not in str(caught.value)


def test_modules_are_counted() -> None:
    with limited(FEW, "m"):
        torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(1000)))
    with pytest.raises(MoecError, match="more than 1064 modules, but its files hold 2 tensors"), limited(FEW, "m"):
        torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(1065)))
    torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(1065)))


@pytest.mark.parametrize("make", [lambda n: torch.arange(n), lambda n: torch.ones(2).expand(n, 2).contiguous()])
def test_tables_are_measured(make: Any) -> None:
    with limited(FEW, "m"):
        assert make(1000).numel() >= 1000
        with pytest.raises(MoecError, match=r"asks for a table of .* MiB"):
            make(1 << 30)


def test_ordinary_numbers() -> None:
    check_numbers({"rope_theta": 10**10, "pad_token_id": -1, "x": [{"max_window_layers": 62}]}, FEW, "m")
    nested: Any = {}
    for _ in range(101):
        nested = {"x": nested}
    with pytest.raises(MoecError, match="nests more than 100 objects"):
        check_numbers(nested, FEW, "m")
