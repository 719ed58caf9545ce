"""Whole models with quantised weights: experts and dense products keep their formats through the passes."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.huggingface.folder import import_folder
from moec.ir.dialect import is_moec
from moec.ir.interpreter import run
from moec.ir.weight_operands import stored_weights
from moec.passes import pipeline
from tests.frontend.huggingface.models import change_config, mixtral, saved, torch, transformers
from tests.frontend.huggingface.test_quantised import along

safetensors = pytest.importorskip("safetensors.numpy")
torch_files = pytest.importorskip("safetensors.torch")
GROUP, BITS = 32, 4
RNG = np.random.default_rng(0)
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def gptq(weight: np.ndarray, order: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Round a weight [out,in] arbitrarily. Returns its tensors and the rounded numbers."""
    group = np.arange(weight.shape[1]) // GROUP
    group = RNG.permutation(group) if order else group
    scale = np.full((weight.shape[0], weight.shape[1] // GROUP), np.abs(weight).max() / 6, np.float16)
    zero = RNG.integers(6, 10, scale.shape)
    q = np.clip(np.round(weight / scale[:, group].astype(np.float32)) + zero[:, group], 0, 15)
    parts = {
        "qweight": along(q.T, BITS, 0),
        "qzeros": np.ascontiguousarray(along((zero - 1) % 16, BITS, 0).T),
        "scales": np.ascontiguousarray(scale.T),
        "g_idx": group.astype(np.int32),
    }
    return parts, ((q - zero[:, group]) * scale[:, group].astype(np.float32)).astype(np.float32)


def quantise(folder: pathlib.Path, places: tuple[str, ...], order: tuple[str, ...]) -> Any:
    """Quantise the weights of a folder whose names contain one of ``places``; those with one of ``order`` by act-order.
    Returns the model of the rounded numbers."""
    path = folder / "model.safetensors"
    plain = safetensors.load_file(path)
    stored = dict(plain)
    for name, weight in plain.items():
        if any(place in name for place in places):
            parts, plain[name] = gptq(weight, any(place in name for place in order))
            del stored[name]
            stored |= {name.removesuffix("weight") + end: array for end, array in parts.items()}
    safetensors.save_file(plain, path, metadata={"format": "pt"})
    module = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    safetensors.save_file(stored, path, metadata={"format": "pt"})
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": BITS, "group_size": GROUP})
    return module


def optimised(folder: pathlib.Path) -> ir.Model:
    model = import_folder(folder)
    pipeline.run(model, pipeline.parse("O2"))
    return model


def formats(model: ir.Model, operator: str) -> list[set[str]]:
    """List the formats of the weights of all moec nodes with this operator."""
    nodes = [node for node in model.graph if is_moec(node, operator)]
    return [{str(form) for weight in stored_weights(node).values() for form in weight.formats} for node in nodes]


def agree(model: ir.Model, module: Any) -> None:
    ids = RNG.integers(0, 64, (2, 9))
    with torch.no_grad():
        expected = module(input_ids=torch.from_numpy(ids)).logits.numpy()
    actual = run(model, {"input_ids": ids})["logits"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_experts_and_dense_products_stay_in_four_bits(tmp_path: pathlib.Path) -> None:
    folder = saved(mixtral(num_hidden_layers=1, hidden_size=64), tmp_path)
    module = quantise(folder, ("experts", "_proj"), ("q_proj", "o_proj"))
    model = optimised(folder)
    assert formats(model, "MoE") == [{"int4/32z"}]
    assert formats(model, "Linear") == [{"int4/32z"}] * 4
    agree(model, module)


def test_experts_in_orders_of_their_own_are_refused(tmp_path: pathlib.Path) -> None:
    folder = saved(mixtral(num_hidden_layers=1, hidden_size=64), tmp_path)
    quantise(folder, ("experts",), ("experts",))
    with pytest.raises(UnsupportedError, match=r"\(act-order\), and model.layers.0.mlp.experts.* is made of several"):
        import_folder(folder)


def replace_weights(
    folder: pathlib.Path, plain: dict[str, Any], stored: dict[str, Any], settings: dict[str, Any]
) -> Any:
    """Put the tensors ``stored`` into a folder. Returns the model of ``plain``, the same weights as floats."""
    path = folder / "model.safetensors"
    torch_files.save_file(plain, path, metadata={"format": "pt"})
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch_files.save_file(stored, path, metadata={"format": "pt"})
    change_config(folder, quantization_config=settings)
    return module


@pytest.mark.nightly  # three other formats run always; test_quantised.py reads these
def test_blocks_of_float8_stay(tmp_path: pathlib.Path) -> None:
    folder = saved(mixtral(num_hidden_layers=1, hidden_size=256, intermediate_size=192), tmp_path)
    plain = torch_files.load_file(folder / "model.safetensors")
    stored = dict(plain)
    for name, weight in list(plain.items()):
        if "experts" in name or "_proj" in name:
            out, size = weight.shape
            scale = torch.rand(-(-out // 128), -(-size // 128)) / 64 + 0.01
            wide = scale.repeat_interleave(128, 0)[:out].repeat_interleave(128, 1)[:, :size]
            stored[name] = (weight / wide).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
            plain[name] = stored[name].float() * wide
    module = replace_weights(folder, plain, stored, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    model = optimised(folder)
    assert formats(model, "MoE") == [{"fp8/128"}]
    assert formats(model, "Linear") == [{"fp8/128"}] * 4
    agree(model, module)


@pytest.mark.nightly
def test_nvfp4_stays(tmp_path: pathlib.Path) -> None:
    folder = saved(mixtral(num_hidden_layers=1, hidden_size=64, intermediate_size=48), tmp_path)
    plain = torch_files.load_file(folder / "model.safetensors")
    stored = dict(plain)
    for name, weight in list(plain.items()):
        if "experts" in name or "_proj" in name:
            codes = RNG.integers(0, 16, tuple(weight.shape))
            scale = (torch.rand(weight.shape[0], weight.shape[1] // 16) + 0.5).to(torch.float8_e4m3fn)
            stored[name] = torch.from_numpy((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8))
            factor = torch.tensor(float(RNG.uniform(0.01, 0.02)))
            stored |= {f"{name}_scale": scale, f"{name}_scale_2": factor}
            stored[f"{name.removesuffix('weight')}input_scale"] = torch.tensor(1.0)
            numbers = np.concatenate([VALUES, -VALUES])[codes]
            plain[name] = torch.from_numpy(numbers) * (scale.float() * factor).repeat_interleave(16, 1)
    module = replace_weights(folder, plain, stored, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    change_config(folder, quantization_config=None)
    config = folder / "hf_quant_config.json"
    config.write_text('{"quantization": 4}')
    with pytest.raises(MoecError, match=r"hf_quant_config\.json: has no object 'quantization'"):
        import_folder(folder)
    config.write_text('{"quantization": {"quant_algo": "NVFP4", "group_size": 16}}')
    model = optimised(folder)
    assert formats(model, "MoE") == [{"nvfp4"}]
    assert formats(model, "Linear") == [{"nvfp4"}] * 4
    agree(model, module)


def test_experts_of_gpt_oss_stay_in_mxfp4(tmp_path: pathlib.Path) -> None:
    config = transformers.GptOssConfig(
        vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
        max_position_embeddings=128, layer_types=["full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    folder = saved(transformers.GptOssForCausalLM(config).eval(), tmp_path)
    plain = torch_files.load_file(folder / "model.safetensors")
    stored = dict(plain)
    for name, weight in list(plain.items()):
        if name.endswith(("gate_up_proj", "down_proj")):
            E, size, out = weight.shape
            codes = RNG.integers(0, 16, (E, out, size // 32, 32))
            scales = RNG.integers(120, 125, (E, out, size // 32)).astype(np.uint8)
            stored[f"{name}_blocks"] = torch.from_numpy((codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8))
            stored[f"{name}_scales"] = torch.from_numpy(scales)
            del stored[name]
            numbers = np.concatenate([VALUES, -VALUES])[codes] * np.exp2(scales[..., None] - np.float32(127))
            plain[name] = torch.from_numpy(numbers.reshape(E, out, size).swapaxes(1, 2).copy())
    module = replace_weights(folder, plain, stored, {"quant_method": "mxfp4"})
    model = optimised(folder)
    assert formats(model, "MoE") == [{"mxfp4"}]
    agree(model, module)
