"""The setting that is the number of experts, and the axes that it makes."""

import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.exporting.expert_axes import ParameterAxis, check_shapes, expert_setting

CONFIG = {"hidden_size": 8, "text": {"num_experts": 8, "num_experts_per_tok": 2, "head_dim": 8, "num_mtp_layers": 1}}


def shapes_of(config):
    """Shapes of a layer whose experts are blocks of three rows, with two identity experts, and of one with heads."""
    text = config["text"]
    if text["head_dim"] > 16 or text["num_experts"] < 2:
        raise MoecError("no such model")
    experts, heads = text["num_experts"], 8 * text["head_dim"]
    return {"experts": (3 * experts, 8), "bias": (1, experts), "router": (experts + 2, 8), "query": (heads, 8)}


def test_the_number_of_experts_is_found():
    setting = expert_setting(CONFIG, 8, shapes_of, "folder")
    assert setting.path == ("text", "num_experts")
    assert setting.parameters == {
        "experts": ParameterAxis(0, 3), "bias": ParameterAxis(1, 1), "router": ParameterAxis(0, 1, more=2),
    }  # fmt: skip


def test_a_list_with_the_number_of_every_layer_is_found():
    config = {"experts": [8, 8], "layers": [8, 4]}
    setting = expert_setting(config, 8, lambda config: {"w": (config["experts"][0], sum(config["layers"]))}, "folder")
    assert setting.path == ("experts",)
    assert setting.changed(config, 6, (2, 2), "folder") == {"experts": [6, 6], "layers": [8, 4]}


def test_nothing_is_guessed():
    with pytest.raises(UnsupportedError, match=r"number of 7 experts is not clear \(candidates: none\)"):
        expert_setting(CONFIG, 7, shapes_of, "folder")
    config = {"experts": 4, "kept_experts": 4}
    with pytest.raises(UnsupportedError, match="candidates: experts, kept_experts"):
        expert_setting(config, 4, lambda config: {"w": (config["experts"], config["kept_experts"])}, "folder")


def test_a_configuration_of_fewer_experts():
    setting = expert_setting(CONFIG, 8, shapes_of, "folder")
    new = setting.changed(CONFIG, 6, (2, 1), "folder")
    assert new["text"] == {"num_experts": 6, "num_experts_per_tok": 1, "head_dim": 8, "num_mtp_layers": 0}
    assert setting.changed(CONFIG, 8, (2, 2), "folder") == CONFIG
    assert setting.predicts_further(CONFIG) and not setting.predicts_further(new)
    check_shapes(setting, shapes_of(CONFIG), shapes_of(new), 6, "folder")
    with pytest.raises(UnsupportedError, match=r"with 5 experts experts would be \(18, 8\); expected \[15, 8\]"):
        check_shapes(setting, shapes_of(CONFIG), shapes_of(new), 5, "folder")
    with pytest.raises(UnsupportedError, match="number of experts for a token, 3; leave out skip-experts"):
        setting.changed(CONFIG, 8, (3, 2), "folder")
