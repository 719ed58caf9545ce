"""Import of models from all sources, before any pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, reporting
from moec.common.once import one_at_a_time

if TYPE_CHECKING:
    import onnx_ir as ir


@one_at_a_time
def import_model(
    model: Any, example_inputs: Any = None, dynamic_shapes: Any = None, cache: bool | None = None
) -> ir.Model:
    """Import the model as ONNX IR at the working opset, before any pass. Sources and errors as for :func:`compile`."""
    from moec.frontend import sources

    if sources.is_torch(model, "nn.Module"):
        from moec.frontend.pytorch import importer as pytorch

        return pytorch.import_module(model, example_inputs, dynamic_shapes, cache=bool(cache))
    if example_inputs is not None or dynamic_shapes is not None:
        raise MoecError(
            "example_inputs and dynamic_shapes are for PyTorch modules; an exported model carries its shapes"
        )
    sources.check(model)
    with reporting("importing", model):
        return sources.import_exported(model, cache)


@one_at_a_time
def import_with_mtp(model: Any) -> tuple[ir.Model, ir.Model]:
    """Import the model and its MTP layer, both with a cache, as :func:`import_model` does."""
    from moec.frontend import sources

    sources.check(model)
    with reporting("importing", model):
        return sources.import_with_mtp(model)
