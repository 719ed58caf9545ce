"""The form for onnxruntime with moec's kernels: MoE blocks as custom operators, everything else as in the form for
onnxruntime.

A folder has ``model.onnx`` and its data, ``libmoec_ops.so`` for ``register_custom_ops_library``, and for each block
``weights/<digest>.bin``, in the layout of the kernels. A file of weights is named after its SHA-256, and the block's
node asks for it by that name: a library beside which other weights lie does not run the model.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from moec.common.errors import UnsupportedError, reporting
from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart, ExportForm
from moec.exporting.onnx_model import MODEL, read_model, run_steps, unraised_parts
from moec.exporting.opening_check import check_opening
from moec.exporting.sealed_folder import foreign_folder, seal_folder

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.exporting.custom_ops.block_program import BlockProgram
    from moec.passes.framework.base import Report
    from moec.targets.base import Target

NAME, DOMAIN, TARGET = "onnxruntime-moec", "moec.ops", "cpu"
LIBRARY, WEIGHTS = "libmoec_ops.so", "weights"


def _write(
    source: Any, aside: pathlib.Path, output: pathlib.Path, options: ExportOptions, report: Report
) -> list[ExportedPart]:
    from moec import targets
    from moec.exporting import onnx_file
    from moec.exporting.custom_ops.ops_library import find_tools, ops_library
    from moec.passes import pipeline

    if options.tokenizer is not None:
        raise UnsupportedError("onnxruntime reads no tokenizer; leave the tokenizer out")
    tools = find_tools()
    model = read_model(source, options, report, pipeline.BEFORE_ONNXRUNTIME)
    aside.mkdir()
    (aside / WEIGHTS).mkdir()
    blocks = _BlockOperators(source, model, targets.get_all(TARGET)[0], aside / WEIGHTS, report)
    parts = blocks.replaced()
    if not blocks.programs:
        reasons = "; ".join(f"{part.name}: {part.reason}" for part in parts[:1]) or "it has no MoE block"
        raise UnsupportedError(f"no block can be a custom operator: {reasons}; export it --for onnxruntime")
    report.progress(f"building {LIBRARY}")
    (aside / LIBRARY).write_bytes(ops_library(tools, list(blocks.programs.values())))
    run_steps(model, source, pipeline.parse(f"remove-dead-nodes,{pipeline.FOR_ONNXRUNTIME}"), report)
    onnx_file.finish(model)
    report.progress(f"writing {output.name}")
    onnx_file.write_file_and_data(model, aside / MODEL)
    check_opening(aside / MODEL, output.name, report, aside / LIBRARY)
    seal_folder(aside)
    return parts + unraised_parts(report)


@dataclasses.dataclass
class _BlockOperators:
    """The blocks of a model, compiled for ``target``, whose weights are written to ``folder``. ``programs``: those of
    the operators, by name."""

    source: Any
    model: ir.Model
    target: Target
    folder: pathlib.Path
    report: Report
    programs: dict[str, BlockProgram] = dataclasses.field(default_factory=dict)

    def replaced(self) -> list[ExportedPart]:
        """Replace every block that can be compiled by an operator."""
        from moec.ir.dialect import has_experts, is_moec

        self.model.opset_imports[DOMAIN] = 1
        nodes = [node for node in self.model.graph.all_nodes() if has_experts(node) or is_moec(node, "Dispatch")]
        return [self._replaced(node) for node in nodes]

    def _replaced(self, node: ir.Node) -> ExportedPart:
        from moec.common.names import node_name

        name = node_name(node)
        self.report.progress(f"compiling {name}")
        try:
            return ExportedPart(name, f"{DOMAIN}.{self._put_operator(node, name)}")
        except UnsupportedError as error:
            return ExportedPart(name, "", str(error))

    def _put_operator(self, node: ir.Node, name: str) -> str:
        """Put an operator in the place of the node of this ``name``. Returns the name of the operator."""
        import onnx_ir as ir

        from moec.exporting.custom_ops.block_model import block_model
        from moec.exporting.custom_ops.block_program import block_program
        from moec.passes.graph.edits import replace_node

        with reporting("compiling blocks", self.source):
            block = block_model(self.model.graph, node)
            program = block_program(block.model, self.target)
        self.programs.setdefault(program.name, program)
        weights = self._written_weights(program)
        operator = ir.node(program.name, block.inputs, weights, domain=DOMAIN, name=name)
        self.model.graph.insert_before(node, operator)
        replace_node(node, operator.outputs)
        return program.name

    def _written_weights(self, block: BlockProgram) -> dict[str, Any]:
        """Write weights. Returns the attributes by which a node finds and recognises them: the SHA-256 of the file,
        after which it is named, and its stamp."""
        from moec.artifacts.c_form.form import stamp_of
        from moec.artifacts.writer import write_weights

        path = self.folder / "new"
        entries, _, written = write_weights(path, [block.program], self.report.progress)
        stamp = stamp_of(path, entries)
        path.rename(self.folder / f"{written.sha256}.bin")
        return {"weights": written.sha256, "stamp": f"{stamp:016x}"}


def _why_not(source: Any) -> str | None:
    return None


FORM = ExportForm(NAME, "onnxruntime with moec's kernels", None, _why_not, foreign_folder, _write)
