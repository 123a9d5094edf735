"""The machine code of cat_group_norm_silu, compiled without a GPU: no spills, shared memory, 16-byte loads."""

import functools
import itertools
import re

import pytest
import torch
from stepcache.kernels.cat_group_norm_silu.op import _launches
from support.kernel_aot import assert_no_spills, slow
from support.kernel_cases import DTYPES, LAYOUTS

from benchmarks.kernels.bench import MODELS, joins
from benchmarks.kernels.compile import SHARED_LIMIT, TARGETS, compile_launch


@functools.cache
def _meta_launches(dtype, layout, join, mix, halves=False):
    """The launches of a join on the meta device, by the kernel's name."""
    (hidden, skip), pixels = join

    def tensor(channels):
        return torch.empty(
            2, channels, pixels, pixels, dtype=DTYPES[dtype], device="meta", memory_format=LAYOUTS[layout]
        )

    affine = torch.empty(hidden + skip, dtype=DTYPES[dtype], device="meta")
    h2, h3 = (tensor(hidden) if mix > i else None for i in (1, 2))
    weights = torch.empty((2, mix) if halves else mix, device="meta") if mix else None
    made, _ = _launches(tensor(hidden), tensor(skip), affine, affine, 32, 1e-5, h2, h3, weights)
    return {launch.kernel.__name__: launch for launch in made}


def _compiled(launch, target):
    """Compile a launch, with half the warps for a target whose warps are twice as wide."""
    warps = launch.arguments["num_warps"]
    arguments = launch.arguments | {"num_warps": max(warps * 32 // TARGETS[target].warp_size, 1)}
    return compile_launch(launch.kernel, arguments, target)


# Kernels by the joins that have them: SDXL's 640+320, with groups of 30 across the seam; for one launch groups of 80
# and, across the seam, of 60 channels. Tiles differ in channels_last, contiguous, and contiguous below 256 pixels.
TWO, TWO_SMALL, ONE, ONE_SEAM = ((640, 320), 64), ((640, 320), 8), ((1280, 1280), 16), ((1280, 640), 16)
KERNELS = ["channel_statistics_kernel", "normalize_silu_kernel"]
JOINS = [("channels_last", TWO), ("contiguous", TWO), ("contiguous", TWO_SMALL)]
JOINS_OF_ONE = [("channels_last", ONE), ("channels_last", ONE_SEAM)]
PAIRS = [*itertools.product(KERNELS, JOINS), *(("cat_group_norm_silu_kernel", join) for join in JOINS_OF_ONE)]
# No buffers mixed takes the fewest registers, three the most, and more if halves take from each other; fp16 differs
# from bf16 in conversions alone. Code for sm_89 is nearly that for sm_80. One or two buffers compile where three do,
# with fewer registers.
MAIN = ["sm_80", "sm_90", "sm_100", "gfx942"]
WAYS = [
    *itertools.product(["bf16", "fp32"], [0, 3], [False], MAIN),
    ("bf16", 2, False, "sm_90"),
    ("fp16", 3, False, "sm_90"),
    *itertools.product(["bf16", "fp32"], [3], [True], MAIN),
    ("bf16", 2, True, "sm_90"),
]


def _is_repeat(kernel, join, dtype, mix, halves, target):
    """Without a mix, other targets than an H100 compile what pipelines run only."""
    return mix == 0 and target != "sm_90" and (join[0], dtype) != ("channels_last", "bf16")


def _is_fast(kernel, join, dtype, mix, halves, target):
    """What pipelines run, and what takes the most registers, on an H100. test_kernel_code.py has one more target."""
    fast = ("bf16", 0, False), ("fp32", 3, False), ("fp32", 3, True)
    return target == "sm_90" and join[0] == "channels_last" and (dtype, mix, halves) in fast


CASES = [
    case if _is_fast(*case) else slow(*case)
    for case in ((*pair, *way) for pair, way in itertools.product(PAIRS, WAYS))
    if not _is_repeat(*case)
]


def _name(case):
    kernel, (layout, ((hidden, skip), pixels)), dtype, mix, halves, target = case
    return f"{kernel}-{dtype}-{layout}-{hidden}+{skip}@{pixels}-{mix}{' halves' if halves else ''}-{target}"


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_compiles_ahead_of_time(case):
    kernel, (layout, join), dtype, mix, halves, target = case
    launch = _meta_launches(dtype, layout, join, mix, halves)[kernel]
    code = _compiled(launch, target)
    assert_no_spills(code, target)
    assert code.shared <= SHARED_LIMIT[target]
    # Every load and store of a tile is 16 bytes per thread, or 8 if groups have 60 channels.
    words = 2 if join == ONE_SEAM and dtype != "fp32" else 4
    if target == "gfx942":
        assert f"global_load_dwordx{words}" in code.asm
        assert kernel == KERNELS[0] or f"global_store_dwordx{words}" in code.asm
        return
    loads = re.findall(r"ld\.global(?:\.L1::\w+)?\.((?:v\d\.)?[bu]\d+)", code.asm)
    buffers = 2 * mix if halves else mix
    tiles = (1 if words == 4 else 2) * max(buffers, 1) * 4 * DTYPES[dtype].itemsize // 2
    assert loads.count(f"v{words}.b32") >= tiles
    if kernel != KERNELS[0]:
        assert f"st.global.v{words}.b32" in code.asm
    # Single elements are the first pixels of channels, and in contiguous weight and bias; a tile would be 16 of them.
    assert sum(n in ("b16", "u16") for n in loads) <= 5 + buffers


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "skip"), sorted({(j.hidden, j.skip) for m in MODELS for j in joins(m)}))
def test_compiles_for_every_group_size(hidden, skip):
    """Groups have 20 to 80 channels, so the merge's tile differs between joins."""
    for layout, pixels in (("contiguous", 32), ("channels_last", 64), ("channels_last", 16)):
        for launch in _meta_launches("bf16", layout, ((hidden, skip), pixels), 0).values():
            assert _compiled(launch, "sm_90").spilled == 0
