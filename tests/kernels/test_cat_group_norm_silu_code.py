"""The machine code of cat_group_norm_silu for GPUs that are not there: no spills, shared memory, 16-byte loads."""

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
def _meta_launches(dtype, layout, join, mix):
    """The launches of a join on the meta device, by the kernel's name."""
    (hidden, skip), pixels = join

    def tensor(channels):
        return torch.empty(
            2, channels, pixels, pixels, dtype=DTYPES[dtype], device="meta", memory_format=LAYOUTS[layout]
        )

    affine = torch.empty(hidden + skip, dtype=DTYPES[dtype], device="meta")
    h2, h3 = (tensor(hidden) if mix > i else None for i in (1, 2))
    weights = torch.empty(mix, device="meta") if mix else None
    made, _ = _launches(tensor(hidden), tensor(skip), affine, affine, 32, 1e-5, h2, h3, weights)
    return {launch.kernel.__name__: launch for launch in made}


def _compiled(launch, target):
    """For a target of warps twice as wide, half as many of them."""
    warps = launch.arguments["num_warps"]
    arguments = launch.arguments | {"num_warps": max(warps * 32 // TARGETS[target].warp_size, 1)}
    return compile_launch(launch.kernel, arguments, target)


# Kernels by the joins that have them: SDXL's 640+320, with groups of 30 across the seam; for one launch groups of 80
# and, across the seam, of 60 channels. Every tile (channels_last, contiguous, contiguous below 256 pixels) is compiled
# with every number of buffers in bf16. fp32 runs with none and with most, which take the fewest and the most registers;
# fp16, which differs from bf16 in conversions alone, with most. All but a few are slow.
TWO, TWO_SMALL, ONE, ONE_SEAM = ((640, 320), 64), ((640, 320), 8), ((1280, 1280), 16), ((1280, 640), 16)
KERNELS = ["channel_statistics_kernel", "normalize_silu_kernel"]
JOINS = [("channels_last", TWO), ("contiguous", TWO), ("contiguous", TWO_SMALL)]
JOINS_OF_ONE = [("channels_last", ONE), ("channels_last", ONE_SEAM)]
MIXES = [*(("bf16", mix) for mix in range(4)), ("fp32", 0), ("fp32", 3), ("fp16", 3)]
FAST = [
    *((kernel, "bf16", join, 0) for kernel in KERNELS for join in JOINS[:2]),
    *((kernel, "fp32", JOINS[0], 3) for kernel in KERNELS),
    *(("cat_group_norm_silu_kernel", "bf16", join, 0) for join in JOINS_OF_ONE),
    ("cat_group_norm_silu_kernel", "fp32", JOINS_OF_ONE[1], 3),
]
EVERY = [
    (kernel, dtype, join, mix)
    for kernel, join in [*itertools.product(KERNELS, JOINS), *(("cat_group_norm_silu_kernel", j) for j in JOINS_OF_ONE)]
    for dtype, mix in MIXES
]
CONFIGURATIONS = FAST + [slow(*c) for c in EVERY if c not in FAST]


def _name(configuration):
    kernel, dtype, (layout, ((hidden, skip), pixels)), mix = configuration
    return f"{kernel}-{dtype}-{layout}-{hidden}+{skip}@{pixels}-{mix}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=_name)
def test_compiles_ahead_of_time(configuration, target):
    kernel, dtype, (layout, join), mix = configuration
    launch = _meta_launches(dtype, layout, join, mix)[kernel]
    code = _compiled(launch, target)
    assert_no_spills(code, target)
    assert code.shared <= SHARED_LIMIT[target]
    # Every load and store of a tile is 16 bytes a thread, or 8 where groups have 60 channels.
    words = 2 if join == ONE_SEAM and dtype != "fp32" else 4
    if target == "gfx942":
        assert f"global_load_dwordx{words}" in code.asm
        assert kernel == KERNELS[0] or f"global_store_dwordx{words}" in code.asm
        return
    loads = re.findall(r"ld\.global(?:\.L1::\w+)?\.((?:v\d\.)?[bu]\d+)", code.asm)
    tiles = (1 if words == 4 else 2) * max(mix, 1) * 4 * DTYPES[dtype].itemsize // 2
    assert loads.count(f"v{words}.b32") >= tiles
    if kernel != KERNELS[0]:
        assert f"st.global.v{words}.b32" in code.asm
    # Single elements are the first pixels of channels, and in contiguous weight and bias; a tile would be 16 of them.
    assert sum(n in ("b16", "u16") for n in loads) <= 5 + mix


@pytest.mark.parametrize(("hidden", "skip"), sorted({(j.hidden, j.skip) for m in MODELS for j in joins(m)}))
def test_compiles_for_every_group_size(hidden, skip):
    """A group has 20 to 80 channels, so the merge's tile differs from join to join."""
    for layout, pixels in (("contiguous", 32), ("channels_last", 64), ("channels_last", 16)):
        for launch in _meta_launches("bf16", layout, ((hidden, skip), pixels), 0).values():
            assert _compiled(launch, "sm_90").spilled == 0
