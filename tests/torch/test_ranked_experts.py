"""Experts of a model in eager PyTorch on several ranks: results are one process's, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

import moec
from moec.common.errors import MoecError
from tests.distributed.gloo import start_ranks

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')
pytest.importorskip("transformers", minversion="5.0", reason='needs the extra "torch": pip install "moec[torch]"')


def both_logits(rank: int, family: str, other: bool = False) -> list[bool]:
    """Whether a rank's logits with ranks equal those without, for prompts of a length of its own, and no prompt."""
    from moec.torch import eager_experts
    from tests.torch.test_eager_experts import layer_of, tiny

    torch.distributed.init_process_group("gloo")
    model = tiny(family)
    if other and rank:
        with torch.no_grad():
            layer_of(model).down_proj.mul_(2)
    prompts = [torch.arange(1, 4 + 5 * rank)[None], torch.arange(3 - 2 * rank, 9)[None]]
    with torch.no_grad():
        moec.torch.experts(model)
        alone = [model(prompt).logits for prompt in prompts]
        moec.torch.experts(model, group=torch.distributed.group.WORLD)
        ranked = [model(prompt).logits for prompt in prompts]
        layer = layer_of(model)
        empty = layer(torch.empty(0, 32), torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2))
    torch.distributed.destroy_process_group()
    equal = [torch.equal(expected, actual) for expected, actual in zip(alone, ranked, strict=True)]
    exchange = eager_experts._layers[layer].model._executor._program.ranks
    return [*equal, empty.shape == (0, 32), exchange.traffic[0].out > 0 and exchange.traffic[0].back > 0]


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_results_are_those_of_one_process(family: str) -> None:
    assert start_ranks(2, both_logits, family).results() == [[True] * 4] * 2


@pytest.mark.nightly
def test_other_experts_are_refused() -> None:
    ranks = start_ranks(2, both_logits, "Mixtral", True)
    assert ranks.codes(120) == [2, 2]
    for text in ranks.said():
        assert "error: rank 1 has other experts than rank 0; load the same model on all ranks" in text


@pytest.mark.parametrize("group", [3, "gloo"])
def test_what_is_no_group_is_refused(group: Any) -> None:
    with pytest.raises(MoecError, match=r"expected a process group of torch\.distributed"):
        moec.torch.experts(torch.nn.Linear(2, 2), group=group)
