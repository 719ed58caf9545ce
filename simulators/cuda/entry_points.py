"""Entry points of kernels for TVM FFI: for each kernel a C++ function that unpacks its arguments and its launch."""

from __future__ import annotations

import re

from moec.common.errors import MoecError
from moec.runtime.device_module import BEGINS_EARLY_TAG, LAUNCH_FLAGS
from moec.simulators.cuda.kernels import KernelSource
from moec.simulators.cuda.launch import EmulatedLaunch

_TENSOR_MAP = "CUtensorMap"
_EXTENT = re.compile(r"(?:blockIdx|threadIdx|clusterCtaIdx)\.[xyz]|tirx\.use_dyn_shared_memory")


def entry_point(kernel: KernelSource, launch: EmulatedLaunch) -> str:
    """The C++ of ``__tvm_ffi_<name>``. Raises MoecError for an unknown launch tag."""
    tags = [tag for tag in launch.tags if tag not in LAUNCH_FLAGS]
    for tag in tags:
        if not _EXTENT.fullmatch(tag):
            raise MoecError(
                f"kernel {kernel.name}: launch tag {tag!r} is not known to the emulator; "
                "expected blockIdx, threadIdx, clusterCtaIdx or tirx.use_dyn_shared_memory; run this kernel on a GPU"
            )
    name, count = kernel.name, len(kernel.parameters)
    fields = "".join(f"  {type_} {field};\n" for type_, field in kernel.parameters)
    unpacked = ", ".join(f"emulator::argument<{type_}>(values[{i}])" for i, (type_, _) in enumerate(kernel.parameters))
    passed = ", ".join(f"arguments.{field}" for _, field in kernel.parameters)
    begins_early = str(BEGINS_EARLY_TAG in launch.tags).lower()
    listed = ", ".join(f'"{tag}"' for tag in tags)
    maps = "".join(f"{place}, " for place, (type_, _) in enumerate(kernel.parameters) if type_ == _TENSOR_MAP)
    return f"""
struct {name}_arguments {{
{fields}}};
static void run_{name}(const void* packed) {{
  const auto& arguments = *static_cast<const {name}_arguments*>(packed);
  (void)arguments;
  {name}({passed});
}}
extern "C" __attribute__((visibility("default"))) int32_t __tvm_ffi_{name}(
    void*, const TVMFFIAny* values, int32_t count, TVMFFIAny* result) {{
  *result = TVMFFIAny{{}};
  const auto entry = reinterpret_cast<void*>(__tvm_ffi_{name});
  static constexpr int32_t maps[] = {{{maps}-1}};
  if (emulator::recorder && emulator::recorder(entry, values, count, maps)) return 0;
  return emulator::call("{name}", [=] {{
    emulator::expect_count(count, {count + len(tags)});
    static const emulator::Kernel kernel = {{"{name}", run_{name}, {kernel.most_threads}, {kernel.shared_bytes},
                                            {kernel.pool_alignment}, {kernel.red_zones}, {kernel.cluster}}};
    const {name}_arguments arguments = {{{unpacked}}};
    emulator::launch(kernel, emulator::shape_of({{{listed}}}, values + {count}), &arguments, {begins_early});
  }});
}}
"""
