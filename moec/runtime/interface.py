"""Interface of a compiled model: its inputs, outputs and states, and the rules that sensible inputs follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from moec.common.guards import bound_names, parse_guard
from moec.common.specs import State, TensorSpec
from moec.runtime.manifest import Manifest, MtpEntry, PipelineStage


@dataclasses.dataclass(frozen=True)
class Interface:
    """Facts about the inputs and outputs that callers and sessions need.

    ``states``: outputs that the next run takes as inputs. ``limits``: bounds of integer inputs that index something
    (token ids), where known; values must stay below. ``sizes``: named sizes that are the sum of others in sensible
    inputs, such as the length of a mask. ``counted``: inputs whose values give the lengths of sequences, such as a mask
    whose ones are counted. ``guards``: conditions on named sizes, outside of which a run is refused. ``stepwise``:
    inputs of states that each run replaces and that do not depend on how tokens were split into runs.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    states: Sequence[State] = ()
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counted: Sequence[str] = ()
    guards: Sequence[str] = ()
    stepwise: Sequence[str] = ()

    @staticmethod
    def of(manifest: Manifest | MtpEntry) -> Interface:
        return Interface(
            manifest.inputs,
            manifest.outputs,
            manifest.states,
            manifest.input_limits,
            manifest.input_sizes,
            manifest.counted_inputs,
            manifest.guards,
            manifest.stepwise_states if isinstance(manifest, Manifest) else (),
        )

    def of_stage(self, stage: PipelineStage) -> Interface:
        """Interface of one stage of a pipeline: guards are those about sizes of its inputs."""
        bound = bound_names([spec.shape for spec in stage.inputs])
        guards = [text for text in self.guards if set(parse_guard(text).names) <= bound]
        return dataclasses.replace(self, inputs=stage.inputs, outputs=stage.outputs, guards=guards)
