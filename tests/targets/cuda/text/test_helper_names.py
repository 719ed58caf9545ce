"""Names of helpers in generated CUDA C: after their instruction."""

from __future__ import annotations

import pytest

from moec.targets.cuda.text.helper_names import with_helper_names


def _helper(name: str, assembly: str) -> str:
    return f'__forceinline__ __device__ void {name}(uint32_t __a) {{\n  asm volatile("{assembly}" : : "r"(__a));\n}}\n'


def _renamed(*helpers: str, other: str = "") -> list[str]:
    """The new names of helpers with these names and assembly, as declared and as called."""
    source = "".join(_helper(*helper.split(": ", 1)) for helper in helpers)
    calls = "".join(f"  {helper.partition(':')[0]}(barrier);\n" for helper in helpers)
    text = with_helper_names(source + other + calls)
    names = [line.split("void ")[1].partition("(")[0] for line in text.splitlines() if line.startswith("__force")]
    assert text.endswith("".join(f"  {name}(barrier);\n" for name in names))
    return names


@pytest.mark.parametrize(
    ("helper", "name"),
    [
        ("tvm_builtin_ptx_mbarrier_init_init_shared_b64: mbarrier.init.shared.b64 [%0], %1;", "mbarrier_init"),
        ("tvm_builtin_ptx_mapa_u32_shared__cluster_u32: mapa.shared::cluster.u32 %0, %1, %2;", "mapa"),
        ("tvm_builtin_ptx_wait_0: cp.async.wait_group 0;", "cp_async_wait_group_0"),
        ("tvm_builtin_ptx_more: setmaxnreg.inc.sync.aligned.u32 240;", "setmaxnreg_inc_240"),
        (
            "tvm_builtin_ptx_copy: cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
            ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;",
            "cp_async_bulk_tensor_3d_multicast",
        ),
        (
            "tvm_builtin_ptx_product: { .reg .pred ps0; setp.ne.b32 ps0, %98, 0; "
            "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {%0, %1}, %96, %97, ps0, 1, 1, 0, 0; }",
            "wgmma_mma_async_m64n192k16_f32_f16_f16",
        ),
        ("tvm_builtin_cluster_ctaid_x: mov.u32 %0, %%cluster_ctarank;", "cluster_ctaid_x"),
        ("tvm_builtin_cuda_cta_sync: bar.sync 0;", "cta_sync"),
    ],
)
def test_a_helper_has_the_name_of_its_instruction(helper, name):
    assert _renamed(helper) == [name]


def test_helpers_of_one_instruction_keep_what_tells_them_apart():
    both = [
        "tvm_builtin_ptx_cp_async_cg_16: cp.async.cg.shared.global [%0], [%1], 16;",
        "tvm_builtin_ptx_cp_async_cg_L2__128B_16: cp.async.cg.shared.global.L2::128B [%0], [%1], 16;",
    ]
    assert _renamed(*both) == ["cp_async_cg_16", "cp_async_cg_L2__128B_16"]


def test_helpers_of_one_instruction_say_in_which_shared_memory_they_work():
    both = [
        "tvm_builtin_ptx_mbarrier_arrive_arrive_shared_b64: mbarrier.arrive.shared.b64 _, [%0], %1;",
        "tvm_builtin_ptx_mbarrier_arrive_nocount: mbarrier.arrive.shared::cluster.b64 _, [%0];",
    ]
    assert _renamed(*both) == ["mbarrier_arrive_shared", "mbarrier_arrive_shared_cluster"]
    assert _renamed(both[0]) == ["mbarrier_arrive"] == _renamed(both[1])


def test_a_name_that_is_taken_is_not_given():
    helper = "tvm_builtin_ptx_mapa_u32: mapa.u32 %0, %1, %2;"
    assert _renamed(helper, other="int mapa;\n") == ["mapa_u32"]


def test_what_is_no_helper_of_tvm_stays():
    source = _helper("blocks_in_grid", "mov.u32 %0, %%nctaid.x;") + "  blocks_in_grid(a);\n"
    assert with_helper_names(source) == source
