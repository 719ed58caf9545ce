"""Tensors of a checkpoint that the parameters of a module are made of, by transformers' own tables of names."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class ParameterSource:
    """Tensors that become a parameter. ``names``: by pattern of the ``converter``, a ``WeightConverter`` of
    ``transformers.core_model_loading``, in the order in which it takes them; without one, a single name."""

    names: Mapping[str, list[str]]
    converter: Any = None

    @property
    def by_expert(self) -> bool:
        """Whether the converter stacks tensors of single experts along the first axis of the parameter."""
        if self.converter is None:
            return False
        first = self.converter.operations[0]
        return type(first).__name__ == "MergeModulelist" and first.dim == 0


def parameter_sources(module: torch.nn.Module, names: Collection[str]) -> tuple[dict[str, ParameterSource], list[str]]:
    """Assign the names of weights to the module's parameters, as transformers does when it loads a checkpoint.

    Returns the sources by parameter, or by the parameter that a converter is called with where it makes several, and
    the names that belong to no parameter.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(module)  # type: ignore[arg-type]
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, state = str(getattr(module, "base_model_prefix", "")), module.state_dict()
    sources: dict[str, ParameterSource] = {}
    unused: list[str] = []
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            unused.append(name)
        elif pattern is None:
            sources[target] = ParameterSource({"": [name]})
        else:
            earlier = sources.get(target)
            source = earlier if earlier is not None and earlier.converter else ParameterSource({}, by_pattern[pattern])
            listed = {**source.names, pattern: [*source.names.get(pattern, []), name]}
            sources[target] = dataclasses.replace(source, names=listed)
    return sources, unused
