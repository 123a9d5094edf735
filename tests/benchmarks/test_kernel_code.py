"""The kernels' code does not grow unnoticed: it is compared with the rows in `results/kernel_code.csv`."""

import importlib.metadata

import pytest
import torch

from benchmarks import RESULTS
from benchmarks.kernels import code as kernel_code
from benchmarks.kernels.code import OUT, OpCall, Row, launches_of, op_calls, row
from benchmarks.kernels.compile import Compiled, compile_launch, instruction_counts
from stepcache.bench.rows import Rig, read

TARGETS = ("sm_90", "gfx942")
REWRITE = "If this is intended, write the rows again: python -m benchmarks.kernels.code"


def key(r):
    """What identifies a row: the columns before the counts, without those on how the launch is cut into programs."""
    return r.op, r.kernel, r.target, r.dtype, r.hidden, r.skip, r.out, r.height, r.width, r.mix, r.halves


def largest(rows):
    """For each kernel and target, the row of its largest join, as it is and with halves of two buffers."""
    found = {}
    for r in rows:
        if r.target in TARGETS and r.dtype == "bf16" and (r.mix, r.halves) in ((0, False), (2, True)):
            size, kind = (r.hidden + r.skip) * r.height * r.width, (r.kernel, r.target, r.mix)
            found[kind] = max(found.get(kind, (0,)), (size, key(r), r))
    return [r for _, _, r in found.values()]


def call_of(r):
    """The call that a row describes."""
    (join,) = {c.join for c in op_calls() if (c.join.hidden, c.join.skip, c.join.out, c.join.height) == key(r)[4:8]}
    return OpCall(r.op, join, torch.bfloat16, r.mix, r.halves)


@pytest.fixture
def same_triton():
    here, there = importlib.metadata.version("triton"), {rig.triton for rig in read(RESULTS / OUT, Rig)}
    if there != {here}:
        pytest.skip(f"the rows were compiled with Triton {there}, here is {here}")


@pytest.mark.parametrize("there", largest(read(RESULTS / OUT, Row)), ids=lambda r: f"{r.kernel}-{r.target}-{r.mix}")
def test_they_do_not_grow_unnoticed(same_triton, there):
    launches = [one for one in launches_of(call_of(there), there.target) if one.kernel == there.kernel]
    assert launches, f"no longer launched. {REWRITE}"
    here = row(call_of(there), launches[0], there.target)
    grown = [
        f"{name}: {now}, not {before}"
        for name, now, before in (
            ("registers", here.registers, there.registers),
            ("spilled", here.spilled, there.spilled),
            ("instructions of the loops", in_loops(here), in_loops(there)),
        )
        if now > before
    ]
    assert not grown, f"{'; '.join(grown)}. {REWRITE}"


def test_float32_on_amd_is_compiled_without_ptx():
    """The launch is noted on an NVIDIA torch, where TF32 is rounded by PTX."""
    (called,) = [c for c in op_calls() if c.dtype == torch.float32 and c.op == "dual_conv1x1"]
    (launch,) = launches_of(called, "gfx942")
    assert "cvt.rna" not in compile_launch(launch.function, launch.arguments, "gfx942").asm
    assert launches_of(called, "sm_90")[0].arguments["ROUND"]


def in_loops(r):
    return sum(int(n) for n in r.loops.split("; ") if n)


def test_there_are_rows_of_all_kernels_that_the_joins_launch():
    launched = {(call.op, launch.kernel) for call in op_calls() for launch in launches_of(call)}
    assert {(r.op, r.kernel) for r in read(RESULTS / OUT, Row)} == launched, REWRITE


def test_a_line_for_people():
    r = read(RESULTS / OUT, Row)[0]
    assert f"{r.registers} registers" in kernel_code.line(r)


AMDGCN = """
	.text
kernel:                                 ; @kernel
.Lfunc_begin0:
; %bb.0:
	s_load_dword s0, s[0:1], 0x0           ; a comment
	s_branch .LBB0_2
.LBB0_1:                                ; the end, to which a branch behind it goes
	s_endpgm
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
	v_add_u32_e32 v0, v0, v1
	s_cbranch_scc1 .LBB0_2
.LBB0_3:
	v_mov_b32_e32 v1, v0
.LBB0_4:
	s_cbranch_scc0 .LBB0_4
	s_cbranch_scc0 .LBB0_3
	s_cbranch_execz .LBB0_1
	s_endpgm
.Lfunc_end0:
	s_nop 0
"""


def test_loops_are_what_a_branch_goes_back_over():
    code = Compiled(AMDGCN, cubin=None, registers=0, spilled=0, shared=0, num_warps=4, num_stages=3)
    assert instruction_counts(code) == (10, [2, 1, 3])
