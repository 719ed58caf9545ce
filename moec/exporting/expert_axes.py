"""Numbers of experts in a ``config.json``, and the weights that grow with them, found by trial.

A configuration with twice as many experts makes a module whose parameters differ from the source's in the axes of the
experts, and in nothing else. So neither names of settings nor names of parameters have to be known.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moec.common.errors import MoecError, UnsupportedError
from moec.exporting.checkpoint_layers import ExpertAxis
from moec.frontend.huggingface.checkpoint.sources import ParameterSource
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
_CHOSEN = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts", "topk"),
    *("num_selected_experts", "n_activated_experts"),
)
"""Settings of the number of experts that a token gets; no shape depends on it."""
_FURTHER_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules")
"""Settings of the number of layers that predict further tokens."""


@dataclasses.dataclass(frozen=True)
class ParameterAxis:
    """An axis of a parameter; an expert has ``blocks`` entries of it. ``more``: identity experts behind the others."""

    axis: int
    blocks: int
    more: int = 0


@dataclasses.dataclass(frozen=True)
class ExpertSetting:
    """The setting of a configuration that is the number of experts: its ``path``, and the parameters that depend on
    it."""

    path: tuple[str, ...]
    count: int
    parameters: Mapping[str, ParameterAxis]

    def predicts_further(self, config: Config) -> bool:
        """Whether the model has layers that predict further tokens."""
        return any(_at(config, self.path[:-1]).get(key) for key in _FURTHER_LAYERS)

    def changed(self, config: Config, count: int, chosen: tuple[int, int], where: str) -> Config:
        """The configuration with another number of experts, and of those for a token, given before and after. Layers
        that predict further tokens are taken out if the number of experts changes.

        Raises UnsupportedError where no known setting is the number for a token.
        """
        new = copy.deepcopy(config)
        settings = _at(new, self.path[:-1])
        if count != self.count:
            _set(settings, self.path[-1], count)
            settings |= {key: 0 for key in _FURTHER_LAYERS if settings.get(key)}
        if chosen[0] != chosen[1]:
            keys = [key for key in _CHOSEN if settings.get(key) == chosen[0]]
            if len(keys) != 1:
                raise UnsupportedError(
                    f"{where}: no setting of config.json is known as the number of experts for a token, {chosen[0]}; "
                    "leave out skip-experts"
                )
            settings[keys[0]] = chosen[1]
        return new


def expert_setting(config: Config, count: int, shapes_of: Callable[[Config], Shapes], where: str) -> ExpertSetting:
    """Find the setting that is the number of experts. ``shapes_of`` makes the shapes of a module's parameters.

    Raises UnsupportedError where there is none, or several.
    """
    shapes = shapes_of(config)
    paths = list(_paths(config, count))
    named = [path for path in paths if "expert" in path[-1]]
    for candidates in (named, [path for path in paths if path not in named]):
        tried = [(path, _axes_of(config, path, count, shapes, shapes_of)) for path in candidates]
        settings = [ExpertSetting(path, count, axes) for path, axes in tried if axes]
        if len(settings) == 1:
            return settings[0]
        if settings:
            break
    names = ", ".join(".".join(setting.path) for setting in settings) or "none"
    raise UnsupportedError(
        f"{where}: which setting of config.json is the number of {count} experts is not clear (candidates: {names}); "
        "export for onnxruntime instead"
    )


def _axes_of(
    config: Config, path: Sequence[str], count: int, shapes: Shapes, shapes_of: Callable[[Config], Shapes]
) -> dict[str, ParameterAxis]:
    """The axes that grow with a setting; empty where it is no number of experts."""
    trial = copy.deepcopy(config)
    _set(_at(trial, path[:-1]), path[-1], 2 * count)
    try:
        return _axes(shapes, shapes_of(trial), count)
    except MoecError:  # the configuration has no such module
        return {}


def _paths(config: Any, count: int) -> Iterator[tuple[str, ...]]:
    """The places of a number in a configuration, also as that of every layer."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((key, *path) for path in _paths(value, count))
            continue
        entries = value if isinstance(value, list) else [value]
        if entries and all(type(entry) is int and entry == count for entry in entries):
            yield (key,)


def _at(config: Config, path: Sequence[str]) -> Config:
    for key in path:
        config = config[key]
    return config


def _set(settings: Config, key: str, count: int) -> None:
    old = settings[key]
    settings[key] = [count] * len(old) if isinstance(old, list) else count


def _axes(before: Shapes, after: Shapes, count: int) -> dict[str, ParameterAxis]:
    """The axes that grew by whole entries for ``count`` more experts; empty where anything else changed."""
    axes: dict[str, ParameterAxis] = {}
    if before.keys() != after.keys():
        return {}
    for name, shape in before.items():
        pairs = zip(shape, after[name], strict=False)
        grown = [(axis, new - old) for axis, (old, new) in enumerate(pairs) if new != old]
        if len(shape) != len(after[name]) or len(grown) > 1:
            return {}
        for axis, difference in grown:
            blocks = difference // count
            if blocks <= 0 or difference % count or shape[axis] < difference or shape[axis] % blocks:
                return {}
            axes[name] = ParameterAxis(axis, blocks, shape[axis] // blocks - count)
    return axes


def check_shapes(setting: ExpertSetting, before: Shapes, after: Shapes, count: int, where: str) -> None:
    """Raise UnsupportedError unless a module of ``count`` experts has the parameters that will be written."""
    fewer = setting.count - count
    for name, shape in before.items():
        expected = list(shape)
        if (place := setting.parameters.get(name)) is not None:
            expected[place.axis] -= fewer * place.blocks
        if tuple(expected) != after.get(name):
            raise UnsupportedError(
                f"{where}: with {count} experts {name} would be {after.get(name)}; expected {expected}: transformers "
                "has no such model"
            )


def expert_weights(
    setting: ExpertSetting,
    sources: Mapping[str, ParameterSource],
    weights: Mapping[str, CheckpointWeight],
    where: str,
) -> dict[str, list[ExpertAxis]]:
    """The weights of a checkpoint with an entry for each expert, by the parameter that is made of them.

    Raises UnsupportedError for stacks of experts of another form.
    """
    places: dict[str, list[ExpertAxis]] = {}
    for parameter, place in setting.parameters.items():
        source = sources.get(parameter)
        if source is None:  # made together with another parameter, or kept in no file
            continue
        for names in source.names.values():
            stored = setting.count + place.more
            if source.by_expert and len(names) == stored:
                own = ExpertAxis(tuple(names), more=place.more)
            elif source.converter is None:
                own = ExpertAxis(tuple(names), place.axis, place.blocks, place.more)
            elif len(names) == 1 and weights[names[0]].data.shape[:1] == (stored,):
                own = ExpertAxis(tuple(names), more=place.more)
            else:
                raise UnsupportedError(
                    f"{where}: {parameter} is made of {len(names)} tensors, of which none can be said to be an "
                    f"expert's ({names[0]}); export for onnxruntime instead"
                )
            places.setdefault(parameter, []).append(own)
    return places
