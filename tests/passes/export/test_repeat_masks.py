"""The pass that repeats masks, for onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from moec.passes import pipeline

from ..before_after import model_of

TEXT = """(float[B,2,T,8] q, float[B,2,S,8] k, float[B,2,S,8] v, bool[B,1,1,S] m) => (float[B,2,T,8] y) {
   y = Attention (q, k, v, m)
}"""


@pytest.mark.parametrize("tokens", [1, 3])
def test_one_row_is_repeated(exported, normal, tokens):
    feeds = {"q": normal(2, 2, tokens, 8), "k": normal(2, 2, 5, 8), "v": normal(2, 2, 5, 8)}
    feeds["m"] = np.arange(5).reshape(1, 1, 1, 5) < np.array([2, 4]).reshape(2, 1, 1, 1)
    exported(TEXT, feeds, by="repeat-masks")


def test_a_row_for_every_query_stays():
    model = model_of(TEXT.replace("bool[B,1,1,S]", "bool[B,1,T,S]"))
    assert not pipeline.run(model, pipeline.parse("repeat-masks"))
