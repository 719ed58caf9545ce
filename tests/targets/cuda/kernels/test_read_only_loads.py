"""Read-only loads of arrays that the same launch writes are found in PTX, through any computation of addresses."""

from __future__ import annotations

import pytest

from .read_only_loads import written_arrays_loaded_as_read_only

PTX = """
.visible .entry kernel(
	.param .u64 kernel_param_0,
	.param .u64 kernel_param_1,
	.param .u32 kernel_param_2
)
{{
	.reg .b64 %rd<8>;
	.shared .align 16 .b8 values[64];
	ld.param.u64 	%rd1, [kernel_param_0];
	ld.param.u64 	%rd2, [kernel_param_1];
	ld.param.u32 	%r4, [kernel_param_2];
	@%p1 bra 	$L;
	cvta.to.global.u64 	%rd3, %rd1;
	mul.wide.u32 	%rd4, %r4, 4;
	add.s64 	%rd5, %rd3, %rd4;
	add.s64 	%rd6, %rd2, %rd4;
$L:
	{body}
	ret;
}}
"""


@pytest.mark.parametrize(
    "body",
    [
        "st.global.u32 [%rd5], 1; ld.global.nc.u32 %r2, [%rd5+4];",
        "ld.global.nc.v2.u32 {%r2, %r3}, [%rd3]; @%p1 st.global.v2.u32 [%rd5], {%r2, %r3};",
        "ld.global.nc.u32 %r2, [%rd5]; { atom.global.add.u32 %r3, [%rd1], 1; }",
        "ld.global.nc.u32 %r2, [%rd5]; selp.b64 %rd7, %rd3, %rd2, %p1; red.global.add.u32 [%rd7], 1;",
    ],
)
def test_an_array_that_is_written_is_no_read_only_one(body):
    assert written_arrays_loaded_as_read_only(PTX.format(body=body)) == {"kernel_param_0"}


@pytest.mark.parametrize(
    "body",
    [
        "ld.global.nc.u32 %r2, [%rd5]; st.global.u32 [%rd6], %r2;",
        "ld.global.u32 %r2, [%rd5]; st.global.u32 [%rd5], %r2;",
        "ld.global.nc.u64 %rd7, [%rd5]; add.s64 %rd7, %rd7, %rd6; st.global.u32 [%rd7], 1;",
        "ld.global.nc.u32 %r2, [%rd5]; st.shared.u32 [values], %r2;",
    ],
)
def test_other_arrays_may_be_read_only(body):
    assert written_arrays_loaded_as_read_only(PTX.format(body=body)) == set()
