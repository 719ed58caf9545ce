"""Put every binding after the ones that define the symbolic sizes it uses.

FuseOps keeps the order of values but not of sizes: a kernel whose result has a size that is read from a tensor
(the number of nonzero elements, say) may end up before the match_cast that reads it. This pass sorts the bindings of
each dataflow block again, otherwise keeping their order.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax, tirx


@tvm.ir.transform.module_pass(opt_level=0, name="OrderBindings")
class OrderBindings:
    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        function = module["main"]
        blocks = [_ordered(block) for block in function.body.blocks]
        body = relax.SeqExpr(blocks, function.body.body)
        module["main"] = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
        return module


def _ordered(block: relax.BindingBlock) -> relax.BindingBlock:
    definitions: dict[tvm.ir.Var, relax.Binding] = {}
    for binding in block.bindings:
        definitions[binding.var] = binding
        for size in sizes_read_by(binding):
            definitions.setdefault(size, binding)
    ordered: list[relax.Binding] = []
    placed: set[tvm.ir.Var] = set()

    def place(binding: relax.Binding) -> None:
        """Iterative: chains are as long as the model is deep."""
        pending = [(binding, iter(_needed(binding, definitions)))]
        while pending:
            current, needed = pending[-1]
            following = next((candidate for candidate in needed if candidate.var not in placed), None)
            if following is not None:
                pending.append((following, iter(_needed(following, definitions))))
                continue
            pending.pop()
            if current.var not in placed:
                placed.add(current.var)
                ordered.append(current)

    for binding in block.bindings:
        place(binding)
    return type(block)(ordered)


def sizes_read_by(binding: relax.Binding) -> list[tirx.Var]:
    """The symbolic sizes that a binding matches with a shape."""
    if not isinstance(binding, relax.MatchCast) or not isinstance(binding.ty, relax.ShapeType):
        return []
    return [size for size in binding.ty.values if isinstance(size, tirx.Var)]


def _needed(binding: relax.Binding, definitions: dict[tvm.ir.Var, relax.Binding]) -> list[relax.Binding]:
    needed: dict[tvm.ir.Var, relax.Binding] = {}

    def visit(variable: tvm.ir.Var) -> None:
        definition = definitions.get(variable)
        if definition is not None and not definition.var.same_as(binding.var):
            needed[definition.var] = definition

    for part in (binding.value, binding.var.ty):
        tvm_ffi.structural_walk(part, [(tvm.ir.Var, visit)])
    return list(needed.values())
