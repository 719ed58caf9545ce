"""Bodies that a model brings along for operators that moec knows, onnxruntime's and its own.

They are set aside on import, for calls that ask for more than moec has of the operator, and to be compared with what
its own operators compute. Copies of a model have none.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

Bodies = Mapping[ir.OperatorIdentifier, ir.Function]
"""Function bodies by domain, name and overload of the operator, at the opset of the model."""
_KEY = "moec.local_bodies"


def attach(model: ir.Model, bodies: Bodies) -> None:
    model.meta[_KEY] = dict(bodies)


def of(model: ir.Model) -> Bodies:
    return model.meta.get(_KEY, {})
