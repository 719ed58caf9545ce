"""A table of ids between a router and its experts: some share weights, some contribute nothing."""

from __future__ import annotations

import numpy as np

from moec.ir import interpreter
from moec.targets.cpu.hardware.machine import Machine

from ...passes.before_after import model_of
from ...products import thinned
from .one_node import compile_model

MODEL = """(float[T,8] x, float[T,5] logits) => (float[T,8] y)
    <int32[6] table = {1, -1, 0, 1, 2, -1}, float[3,6,8] up, float[3,8,6] down> {
    w, e = moec.Route <k = 3, score = "sigmoid", threshold = 0.5> (logits)
    s = Gather <axis = 0> (table, e)
    y = moec.Experts <activation = "relu", gate_layout = "none"> (x, w, s, up, down)
}"""


@thinned("tokens", [0, 1, 7, 64], 4)
def test_pairs_find_the_weights_of_their_experts(tokens):
    model = model_of(MODEL)
    random = np.random.default_rng(tokens)
    case = {name: random.standard_normal((tokens, n), dtype=np.float32) for name, n in (("x", 8), ("logits", 5))}
    (y,) = compile_model(model, Machine.host())(**case)
    np.testing.assert_allclose(y, interpreter.run(model, case)["y"], rtol=1e-5, atol=1e-5)
