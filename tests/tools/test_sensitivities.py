"""Gradients of a loss with respect to layers, in a case where they are known."""

from __future__ import annotations

import pathlib

import pytest

from moec.common.errors import MoecError
from moec.passes.weights.sensitivities import read_sensitivities
from moec.profiles.file import Head, LayerEntry, write_profile
from moec.tools.sensitivities import sensitivities

torch = pytest.importorskip("torch")

WIDTH, KEYS = 4, ("0123456789abcdef", "89abcdef01234567")


class Scaled(torch.nn.Module):
    def __init__(self, factor: float, in_tuple: bool = False) -> None:
        super().__init__()
        self.factor, self.in_tuple = factor, in_tuple

    def forward(self, x):
        return (self.factor * x, None) if self.in_tuple else self.factor * x


class Model(torch.nn.Module):
    """Two layers, the second of which returns a tuple; the result of ``unread`` is ignored, and ``unused`` does not
    run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unread, self.unused = Scaled(2), Scaled(3, True), Scaled(1), Scaled(1)

    def forward(self, x):
        self.unread(x)
        return self.second(self.first(x))[0]


@pytest.fixture
def profile(tmp_path: pathlib.Path) -> pathlib.Path:
    layers = [LayerEntry(key, "experts", f"moe{at}", WIDTH, 8, 2, 1, 2, ("up", "down")) for at, key in enumerate(KEYS)]
    write_profile(tmp_path / "p", Head({"name": "m", "sha256": "00"}, [], "O2", [], layers), [])
    return tmp_path / "p"


def model() -> Model:
    return Model().eval()


BATCHES = [torch.ones(2, 3, WIDTH), torch.ones(1, 5, WIDTH)]


def test_squared_norms_of_gradients_by_token(profile, tmp_path):
    """The loss is 5 times the sum of outputs: gradients are 5 after the second layer, 15 after the first."""
    module = model()
    actual = sensitivities(module, BATCHES, lambda x: 5 * module(x).sum(), ["first", "second"], profile, tmp_path / "s")
    assert actual == [15**2 * WIDTH, 5**2 * WIDTH]
    assert read_sensitivities(tmp_path / "s") == dict(zip(KEYS, actual, strict=True))
    assert not module.first._forward_hooks


def test_no_file_is_replaced(profile, tmp_path):
    module = model()
    (tmp_path / "s").write_text("mine")
    with pytest.raises(MoecError, match="is there already; weights are edited by people"):
        sensitivities(module, BATCHES, lambda x: module(x).sum(), ["first", "second"], profile, tmp_path / "s")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["first"], r"p: has 2 layers of experts, but 1 are named; name the submodules"),
        (["first", "third"], r"Model has no submodule 'third'"),
        (["first", "first"], r"a submodule is named twice"),
        (["first", "unread"], r"layer unread: the loss does not depend on its output"),
        (["first", "unused"], r"layer unused: it saw no token in these batches"),
    ],
)
def test_layers_that_are_not_those_of_the_profile_are_refused(layers, message, profile, tmp_path):
    module = model()
    with pytest.raises(MoecError, match=message):
        sensitivities(module, BATCHES, lambda x: module(x).sum(), layers, profile, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output: output, "the loss is not a single number"),
        (lambda output: output.detach().sum(), "the loss is not a single number that depends on the layers"),
        (lambda output: (output * float("nan")).sum(), "layer first: gradients of it are not finite"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message, profile, tmp_path):
    module = model()
    with pytest.raises(MoecError, match=message):
        sensitivities(module, BATCHES, lambda x: loss(module(x)), ["first", "second"], profile, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_module_in_training_is_refused(profile, tmp_path):
    module = Model()
    with pytest.raises(MoecError, match=r"Model is in training mode; call module.eval\(\) first"):
        sensitivities(module, BATCHES, lambda x: module(x).sum(), ["first", "second"], profile, tmp_path / "s")
