"""Train a vision transformer with experts on scikit-learn's handwritten digits, and export it as users do.

    pip install torch onnxscript scikit-learn
    python examples/vision_moe/train.py examples/vision_moe

Images of 8 x 8 pixels become 16 patches of 2 x 2, in front of which stands a class token. Every second layer has in
the place of its feed-forward part 8 experts, of which each token takes 2. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, HIDDEN, LAYERS = 32, 2, 64, 4
EXPERTS, SLOTS = 8, 2
PATCH, SIDE, CLASSES = 2, 8, 10
TOKENS = (SIDE // PATCH) ** 2 + 1
EPOCHS, BATCH = 120, 64
BALANCE = 0.01
"""The part of the loss that keeps experts equally busy."""
HELD_OUT, CALIBRATION = 450, 64


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        return self.output(heads.transpose(1, 2).reshape(batch, tokens, WIDTH))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class Experts(nn.Module):
    """All experts on all tokens, weighed by the router: how experts that exporters understand are written."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) * WIDTH**-0.5)
        self.up_bias = nn.Parameter(torch.zeros(EXPERTS, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) * HIDDEN**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(EXPERTS, WIDTH))
        self.unbalanced = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, WIDTH)
        probabilities = functional.softmax(self.router(tokens), dim=-1)
        weights, chosen = torch.topk(probabilities, SLOTS, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        mixture = torch.zeros_like(probabilities).scatter(-1, chosen, weights)
        if self.training:
            load = (mixture.detach() > 0).float().mean(dim=0)
            self.unbalanced = EXPERTS / SLOTS * (load * probabilities.mean(dim=0)).sum()
        hidden = functional.gelu(torch.einsum("td,edf->tef", tokens, self.up) + self.up_bias)
        results = torch.einsum("tef,efd->ted", hidden, self.down) + self.down_bias
        return torch.einsum("ted,te->td", results, mixture).reshape(x.shape)


class Layer(nn.Module):
    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm_2, self.second = nn.LayerNorm(WIDTH), second

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.second(self.norm_2(x))


class VisionTransformer(nn.Module):
    """Images [N, 1, 8, 8] from 0 to 1 → logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH) * 0.02)
        self.layers = nn.Sequential(*(Layer(Experts() if place % 2 else FeedForward()) for place in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.layers(tokens))[:, 0])


def moved(images: Tensor) -> Tensor:
    """Each image by up to one pixel, in either direction."""
    padded = functional.pad(images, (1, 1, 1, 1))
    places = torch.randint(0, 3, (len(images), 2)).tolist()
    return torch.stack([image[:, y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(padded, places, strict=True)])


def train(model: VisionTransformer, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    mixtures = [layer.second for layer in model.layers if isinstance(layer.second, Experts)]
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for first in range(0, len(images) - BATCH + 1, BATCH):
            picked = order[first : first + BATCH]
            loss = functional.cross_entropy(model(moved(images[picked])), labels[picked], label_smoothing=0.05)
            loss = loss + BALANCE * sum(mixture.unbalanced for mixture in mixtures)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="where to write model.onnx, calibration.npz, inputs.npz, ...")
    folder = parser.parse_args().folder
    torch.manual_seed(0)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels = (digits.images[order, None] / 16).astype(np.float32)
    labels = digits.target[order]
    model = VisionTransformer()
    train(model.train(), torch.from_numpy(pixels[HELD_OUT:]), torch.from_numpy(labels[HELD_OUT:]))
    model.eval()
    with torch.no_grad():
        right = (model(torch.from_numpy(pixels[:HELD_OUT])).argmax(1).numpy() == labels[:HELD_OUT]).sum()
    print(f"{right} of {HELD_OUT} held-out images are read right")
    example = torch.from_numpy(pixels[:2])
    torch.onnx.export(
        model,
        (example,),
        folder / "model.onnx",
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
    )
    np.savez_compressed(folder / "calibration.npz", images=pixels[HELD_OUT : HELD_OUT + CALIBRATION])
    np.savez_compressed(folder / "inputs.npz", images=pixels[:HELD_OUT])
    np.savez_compressed(folder / "labels.npz", labels=labels[:HELD_OUT].astype(np.uint8))


if __name__ == "__main__":
    main()
