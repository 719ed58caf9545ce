"""Decomposition, one by one, of the operators that PyTorch's ONNX exporter does not know.

``torch.onnx.export`` calls :meth:`torch.export.ExportedProgram.run_decompositions`, which traces the whole program
again, in functional form. That takes longer than the export itself, although only a few operators need it. Where
operators do not have to be seen together, replacing each by itself gives the same result.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.fx import Graph, Node

Table = Mapping[Any, Callable[..., Any]]
"""Decompositions by operator, as ``run_decompositions`` takes them."""


class _TogetherError(Exception):
    """Operators of the program cannot be replaced one by one."""


def decompose_one_by_one(program: torch.export.ExportedProgram) -> None:
    """Let ``program.run_decompositions`` replace operators one by one.

    It still traces the whole program where there are bodies of control flow, sizes that depend on each other or on
    data, or tensors that change in place while others may share their memory.
    """
    traced = program.run_decompositions

    def run_decompositions(decomp_table: Table) -> torch.export.ExportedProgram:
        try:
            return _decomposed(program, decomp_table)
        except _TogetherError:
            return traced(dict(decomp_table))

    program.run_decompositions = run_decompositions  # type: ignore[method-assign, assignment]


def _decomposed(program: torch.export.ExportedProgram, table: Table) -> torch.export.ExportedProgram:
    import torch
    from torch._guards import detect_fake_mode

    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    depends_on_data = any("unbacked_bindings" in node.meta for node in program.graph.nodes)
    if mode is None or depends_on_data or _has_relations(mode.shape_env):
        raise _TogetherError
    signature = copy.deepcopy(program.graph_signature)
    expansion = _Expansion(torch.fx.Graph(), mode, table)
    for node in program.graph.nodes:
        new = expansion.add(node)
        if isinstance(new, torch.fx.Node) and new.name != node.name:
            signature.replace_all_uses(node.name, new.name)
    return torch.export.ExportedProgram(
        program.graph_module,
        expansion.graph,
        signature,
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
        verifiers=[program.verifier],
    )


def _has_relations(environment: Any) -> bool:
    """Whether sizes depend on each other; tracing again would find more of such relations."""
    return any(len(environment.replace(guard.expr).free_symbols) > 1 for guard in environment.guards)


class _Expansion:
    """Copy of a graph's nodes into ``graph``, with the replacement of each: nodes, numbers, or tuples and lists of
    them."""

    def __init__(self, graph: Graph, mode: Any, table: Table) -> None:
        self.graph, self._mode, self._table = graph, mode, table
        self._new: dict[Node, Any] = {}

    def add(self, node: Node) -> Any:
        import torch

        if node.op == "get_attr":  # of a body
            raise _TogetherError
        if node.op != "call_function":
            new = self.graph.node_copy(node, self._new.__getitem__)
        else:
            target: Any = node.target
            changed: Any = None
            if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
                changed = node.args[0]
                target = self._out_of_place(target, changed, node)
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._new.__getitem__)
            new = self._call(target, args, kwargs, node)
            if changed is not None:
                self._new[changed] = new
        self._new[node] = new
        return new

    def _out_of_place(self, in_place: Any, changed: Any, node: Node) -> Any:
        """Find the operator that returns the new value of the argument that ``node`` changes in place. Raises
        _TogetherError where anything except later nodes could see the change."""
        import torch

        arguments, packet = in_place._schema.arguments, in_place.overloadpacket
        written = [argument for argument in arguments if argument.alias_info is not None]
        target = getattr(getattr(torch.ops, in_place.namespace), packet.__name__.removesuffix("_"), None)
        target: Any = getattr(target, in_place._overloadname, None)
        if target in (None, in_place) or written != arguments[:1] or not isinstance(changed, torch.fx.Node):
            raise _TogetherError
        owner: Any = changed
        while _is_view(owner) and len(owner.args[0].users) == 1:
            owner = owner.args[0]
        maker: Any = owner.args[0] if owner.target is operator.getitem else owner
        others = [each.target for each in (maker, *changed.users) if each is maker or each in self._new]
        if not all(isinstance(other, torch._ops.OpOverload) and _is_fresh(other) for other in others):
            raise _TogetherError
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
        with self._mode:
            result = target(*args, **kwargs)
        if result.dtype != changed.meta["val"].dtype:
            raise _TogetherError
        return target

    def _call(self, target: Any, args: Any, kwargs: Any, like: Node) -> Any:
        """Add a call in the place of the node ``like``, decomposed where necessary, and return its results."""
        if target is operator.getitem and not hasattr(args[0], "op"):
            return args[0][args[1]]
        if _is_known(target, self._table):
            new = self.graph.create_node("call_function", target, args, kwargs, name=like.name)
            new.meta = like.meta.copy()
            return new
        return self._decomposed(target, args, kwargs, like)

    def _decomposed(self, target: Any, args: Any, kwargs: Any, like: Node) -> Any:
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.utils._pytree import tree_flatten, tree_unflatten

        leaves, structure = tree_flatten((args, kwargs))
        nodes = [leaf for leaf in leaves if isinstance(leaf, torch.fx.Node)]

        def call(*values: Any) -> Any:
            tensors = iter(values)
            args, kwargs = tree_unflatten(
                [next(tensors) if isinstance(leaf, torch.fx.Node) else leaf for leaf in leaves], structure
            )
            return target(*args, **kwargs)

        with self._mode:
            traced = make_fx(call, decomposition_table=dict(self._table))(*(node.meta["val"] for node in nodes))
        inner: dict[Node, Any] = {}
        arguments = iter(nodes)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                inner[node] = next(arguments)
            elif node.op == "output":
                return torch.fx.map_arg(node.args[0], inner.__getitem__)
            elif node.op == "call_function" and _is_known(node.target, self._table):
                inner[node] = self.graph.node_copy(node, inner.__getitem__)
                inner[node].meta = {**like.meta, "val": node.meta.get("val")}
            else:
                raise _TogetherError
        raise AssertionError


def _is_known(target: Any, table: Table) -> bool:
    """Whether an operator stays as it is: it has no decomposition, or it is composed of others but not in ``table``,
    and its results share no memory with its arguments."""
    import torch

    if not isinstance(target, torch._ops.OpOverload):
        if isinstance(target, torch._ops.OperatorBase):
            raise _TogetherError
        return True
    if target._schema.is_mutable:
        raise _TogetherError
    return target not in table and (_is_fresh(target) or not _is_composed(target))


def _is_view(node: Node) -> bool:
    """Whether the node's result may share the memory of its first argument and only have another shape."""
    import torch

    target = node.target
    is_operator = isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable
    return is_operator and not _is_fresh(target) and isinstance(node.args[0], torch.fx.Node)


def _is_composed(target: Any) -> bool:
    import torch

    return target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _is_fresh(target: Any) -> bool:
    """Whether the operator's results share no memory with its arguments."""
    import torch

    is_view = any(result.alias_info is not None for result in target._schema.returns)
    return not (is_view or target._schema.is_mutable or torch.Tag.maybe_aliasing_or_mutating in target.tags)
