"""The kind of target ``cuda``: GPUs of NVIDIA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moec.targets.kind import CommandResult, Form, Options, ProgramKind, Standalone

if TYPE_CHECKING:
    import pathlib

    from rich.console import RenderableType

    from moec.common.crossovers import Tuned
    from moec.common.roofline import Roofline
    from moec.runtime.artifact import Artifact
    from moec.runtime.device import Device
    from moec.runtime.model import CompiledModel
    from moec.targets.base import Target


class CudaKind(ProgramKind):
    """NVIDIA's GPUs, with compute capabilities as variants."""

    name = "cuda"
    examples = ("cuda", "cuda:sm_80+sm_90a")
    takes_several = has_device = joins_products = exchanges_rows = True
    forms = (
        Form("cuda", ".cu", "//"),
        Form("ptx", ".ptx", "//", made_by="nvcc"),
        Form("sass", ".sass", "//", made_by="nvcc with cuobjdump and nvdisasm"),
        Form("resources", ".txt", "//", made_by="nvcc", is_code=False),
    )
    machines = ("a100", "h100", "b200", "rtx4090", "rtx5090", "rtxpro6000")
    tools = ("nvcc", "cuobjdump", "nvdisasm")

    def oldest_first(self, variants: Sequence[str]) -> Sequence[str]:
        from moec.targets.cuda.hardware.architectures import LIMITS

        order = list(LIMITS)
        return sorted(variants, key=lambda variant: order.index(variant) if variant in LIMITS else len(order))

    def target(self, name: str, options: Options | None = None) -> Target:
        from moec.targets.cuda.target import CudaTarget

        return CudaTarget.create(name)

    def device(self, artifact: Artifact, architecture: str | None) -> Device:
        from moec.targets.cuda.device.gpu import gpu

        return gpu(artifact, architecture)

    def emulated_device(self, architecture: str) -> Device:
        from moec.simulators.cuda.device import emulated_device

        return emulated_device(architecture)

    def standalone(self, artifact: Artifact, kernel: str, architecture: str | None) -> Standalone:
        from moec.targets.cuda.standalone import CudaStandalone

        return CudaStandalone.of(artifact, kernel, architecture)

    def measure_roofline(self, threads: int) -> Roofline:
        from moec.targets.cuda.roofline import measure_roofline

        return measure_roofline(threads)

    def tune(self, compiled: CompiledModel, progress: Callable[[str], None]) -> list[Tuned]:
        from moec.tools.tune_gpu import measure_on_gpu

        return measure_on_gpu(compiled, progress)

    def estimate_launches(
        self,
        artifact: Artifact,
        machine: str | None,
        tokens: Sequence[int],
        past: int | None,
        architecture: str | None = None,
    ) -> CommandResult:
        from moec.targets.cuda.estimates.launches import estimate_launches
        from moec.targets.cuda.estimates.tables import launch_data, launch_tables

        model = estimate_launches(artifact, machine, tokens, past, architecture)
        return CommandResult(launch_data(model), launch_tables(model), as_expected=True)

    def resources(self, artifact: Artifact, kernel: Mapping[str, Any], architecture: str) -> list[dict[str, Any]]:
        from moec.targets.cuda.resources import resources_of

        return resources_of(artifact, kernel, architecture)

    def needs(self, description: Mapping[str, Any]) -> Sequence[str]:
        architectures = " or ".join(description["binaries"])
        return [f"a GPU that runs {architectures}" if architectures else "a GPU, and nvcc to compile its code"]

    def find_tool(self, name: str) -> pathlib.Path | None:
        from moec.targets.cuda.nvcc import find_tool

        return find_tool(name)

    def findings(self) -> Mapping[str, Any]:
        from moec.targets.cuda.doctor import examine_gpus

        return {"gpu": examine_gpus()}

    def finding_tables(self, findings: Mapping[str, Any]) -> Iterable[RenderableType]:
        from moec.targets.cuda.doctor import gpu_tables

        return gpu_tables(findings["gpu"])
