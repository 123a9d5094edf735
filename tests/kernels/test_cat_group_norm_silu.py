"""concat -> GroupNorm -> SiLU: the numbers in the interpreter, the op in torch's machinery, the code for real GPUs."""

import functools
import itertools
import re

import pytest
import torch
from stepcache.kernels.cat_group_norm_silu import (
    cat_group_norm_silu,
    cat_group_norm_silu_reference,
    cat_group_norm_silu_triton,
)
from stepcache.kernels.cat_group_norm_silu.launch import group_tile, groups_of_block, launch_parameters, one_launch
from stepcache.kernels.cat_group_norm_silu.op import _launches
from support import kernel_checks
from support.kernel_aot import assert_no_spills, slow
from support.kernel_cases import (
    DTYPES,
    EDGES,
    LAYOUTS,
    MIXES,
    SHAPES,
    Shape,
    assert_as_good_as_stock,
    compiled_cases,
    gpu_cases,
    norm_arguments,
    numeric_cases,
    stock_norm,
    widened,
)
from support.kernel_fake_gpu import launches

from benchmarks.kernels.bench import MODELS, joins
from benchmarks.kernels.compile import SHARED_LIMIT, TARGETS, compile_launch

OP = "cat_group_norm_silu"
# More than one chunk in both layouts, and the last one shorter.
SPLIT = Shape("several chunks", 1, 40, 24, 8, 4, 25, 42)
MULTIPROCESSORS = 132


# The numbers.


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.why)
def test_reference_is_the_stock_operations(shape):
    arguments = widened(norm_arguments(shape, torch.float32, torch.contiguous_format))
    torch.testing.assert_close(cat_group_norm_silu_reference(**arguments), stock_norm(arguments))


@pytest.mark.parametrize(("shape", "dtype", "layout"), numeric_cases(SPLIT))
def test_kernels_against_float64(interpreter, shape, dtype, layout):
    arguments = norm_arguments(shape, DTYPES[dtype], LAYOUTS[layout])
    result = interpreter("support.kernel_worker", "run", OP, **arguments)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(result, stock_norm(arguments), exact)
    assert result.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("multiprocessors", [MULTIPROCESSORS, 1])
@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [*EDGES, *MIXES[:3]], ids=lambda s: s.why)
def test_two_launches_for_every_size(interpreter, shape, dtype, multiprocessors):
    """In channels_last, where most of these have one launch; on one multiprocessor a program walks many tiles."""
    arguments = norm_arguments(shape, DTYPES[dtype], torch.channels_last)
    result = interpreter("support.kernel_worker", "run_two_launches", multiprocessors, **arguments)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(result, stock_norm(arguments), exact)


# Ways to compute: layout, and multiprocessors of the two launches or None for one.
WAYS = [("channels_last", None), ("channels_last", 1), ("channels_last", MULTIPROCESSORS), ("contiguous", 1)]


def _run(interpreter, way, arguments):
    layout, multiprocessors = way
    given = arguments | {k: arguments[k].contiguous(memory_format=LAYOUTS[layout]) for k in ("h", "skip")}
    if multiprocessors is not None:
        return interpreter("support.kernel_worker", "run_two_launches", multiprocessors, **given)
    assert one_launch(SMALL.hidden, SMALL.skip, SMALL.groups, SMALL.height * SMALL.width, True)
    return interpreter("support.kernel_worker", "run", OP, **given)


# 30 channels a group; pixels that are no multiple of a tile.
SMALL = Shape("one launch or two", 1, 60, 60, 8, 4, 19, 31)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_mean_far_from_zero(interpreter, way):
    """At a mean of 1000 deviations E[x^2] - E[x]^2 in float32 would keep one digit."""
    arguments = norm_arguments(SMALL, torch.float32, torch.channels_last)
    for name in ("h", "skip"):
        arguments[name] = arguments[name] + 1000
    exact = cat_group_norm_silu_reference(**widened(arguments))
    result = _run(interpreter, way, arguments)
    assert_as_good_as_stock(result, stock_norm(arguments), exact)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("far", [1, 32, 64, 128, 256, "a channel"])
def test_worst_cases_of_sums_of_differences(interpreter, way, far):
    """What differences are taken from is the one outlier, by 1000 deviations of the rest.

    The first pixel of each channel; of each lane, as there are 32 (two launches), 128 (one) or 256 (contiguous); the
    first chunk (64); a group's first channel.
    """
    arguments = norm_arguments(SMALL, torch.float32, torch.contiguous_format)
    for x in (arguments["h"], arguments["skip"]):
        if far == "a channel":
            x[:, 0] += 1000
        else:
            x.flatten(2)[..., :far] += 1000
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(_run(interpreter, way, arguments), stock_norm(arguments), exact)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("value", [3.0, 1000.1])
def test_no_variance(interpreter, way, value):
    """A constant input is its own mean to the last bit, so what is left is the bias; eps = 0 divides 0 by 0."""
    arguments = norm_arguments(SMALL, torch.float32, torch.contiguous_format)
    arguments |= {name: torch.full_like(arguments[name], value) for name in ("h", "skip")}
    result = _run(interpreter, way, arguments)
    expected = torch.nn.functional.silu(arguments["bias"])[None, :, None, None].expand_as(result)
    torch.testing.assert_close(result, expected)
    assert _run(interpreter, way, arguments | {"eps": 0.0}).isnan().all()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_constant_channels(interpreter, way):
    """Each channel constant, at another value: their spread is all the variance that there is."""
    arguments = norm_arguments(SMALL, torch.float32, torch.contiguous_format)
    for name in ("h", "skip"):
        arguments[name] = arguments[name][..., :1, :1].expand_as(arguments[name]) + 100
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(_run(interpreter, way, arguments), stock_norm(arguments), exact)


def test_float32_weight_and_bias_with_16_bit_activations(interpreter):
    arguments = norm_arguments(SPLIT, torch.float16, torch.channels_last)
    arguments |= {name: arguments[name].float() for name in ("weight", "bias")}
    result = interpreter("support.kernel_worker", "run", OP, **arguments)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(result, cat_group_norm_silu_reference(**arguments), exact)


@pytest.mark.parametrize("odd", ["h", "skip"])
def test_mixed_layouts_and_slices_are_taken(interpreter, odd):
    arguments = norm_arguments(SPLIT, torch.float32, torch.channels_last)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    mixed = arguments | {odd: arguments[odd].contiguous()}
    every_second = arguments | {odd: arguments[odd].repeat_interleave(2, 3)[..., ::2]}
    for given in (mixed, every_second):
        result = interpreter("support.kernel_worker", "run", OP, **given)
        torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [SPLIT, EDGES[1]], ids=["two launches", "one launch"])
def test_the_same_bits_in_any_order_of_programs(interpreter, shape):
    arguments = norm_arguments(shape, torch.float32, torch.channels_last)
    first, second = (interpreter("support.kernel_worker", name, OP, **arguments) for name in ("run", "run_backwards"))
    assert torch.equal(first, second)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_launch_2_walks_the_steps_of_launch_1_backwards(interpreter, layout):
    """What L2 was given last is what it still has. All steps have two tiles here."""
    arguments = norm_arguments(Shape("full steps", 1, 40, 24, 8, 4, 32, 64), torch.bfloat16, LAYOUTS[layout])
    first, second = interpreter("support.kernel_worker", "tiles_of_two_launches", 4, **arguments)
    assert len(first) == len(set(first)) > 10
    assert second[::2] == first[::2][::-1]


@pytest.mark.parametrize(
    ("channels_last", "c1", "one"),
    [(True, 80, False), (False, 80, False), (True, 96, True), (True, 80, True)],
    ids=["channels_last", "contiguous", "one launch", "one launch across the seam"],
)
def test_beyond_2_to_the_31_elements(interpreter, channels_last, c1, one):
    torch.testing.assert_close(
        *interpreter("support.kernel_huge", "norm_at_the_end", channels_last, c1, one), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("channels_last", [True, False])
def test_tiles_beyond_2_to_the_31_elements(interpreter, channels_last):
    torch.testing.assert_close(*interpreter("support.kernel_huge", "norm_wide", channels_last), rtol=1e-3, atol=2e-3)


# The op.


def test_opcheck(anywhere):
    anywhere("support.kernel_checks", "opcheck", OP)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_to_one_graph(anywhere, backend, dynamic):
    anywhere("support.kernel_checks", "compiles", OP, backend, dynamic)


def test_compiles_with_inductor():
    arguments = norm_arguments(kernel_checks.SHAPE, torch.float32, torch.channels_last)
    compiled = torch.compile(lambda a: cat_group_norm_silu(**a) * 1, fullgraph=True)
    torch.testing.assert_close(compiled(arguments), cat_group_norm_silu(**arguments))


@pytest.mark.parametrize("check", ["compiles_once_for_all_sizes", "exports", "knows_shapes"])
def test_dynamic_shapes_export_and_meta(anywhere, check):
    anywhere("support.kernel_checks", check, OP)


def test_on_cuda_it_is_one_launch_or_two_and_nothing_else():
    for edge, kernels in (
        (24, ["channel_statistics_kernel", "normalize_silu_kernel"]),
        (16, ["cat_group_norm_silu_kernel"]),
    ):
        shapes = [(2, 640, edge, edge), (2, 320, edge, edge), (960,), (960,)]
        made, others = launches(cat_group_norm_silu_triton, shapes, 32, 1e-5)
        assert [launch.kernel for launch in made] == kernels
        assert all(launch.arguments[name] is None for launch in made for name in ("h2", "h3", "mix"))
        assert set(others) <= {"empty", "empty_like"}


@pytest.mark.parametrize(
    ("c1", "c2", "edge", "expected"),
    [
        (1280, 1280, 8, True),
        (1280, 1280, 16, True),
        (1280, 640, 16, True),  # groups of 60, one of them across the seam
        (1280, 640, 32, False),
        (640, 640, 32, True),  # groups of 40, none across it
        (640, 640, 33, False),
        (640, 320, 64, False),
        (4096, 4096, 8, False),  # groups of 256: the tile has 128 channels at the most
    ],
)
def test_small_joins_have_one_launch(c1, c2, edge, expected):
    assert one_launch(c1, c2, 32, edge * edge, True) is expected
    assert not one_launch(c1, c2, 32, edge * edge, False)


def test_one_launch_has_offsets_of_32_bits():
    assert one_launch(2**19, 2**19, 2**13, 32 * 31, True)
    assert not one_launch(2**19, 2**19, 2**13, 32 * 32, True)


@pytest.mark.parametrize("size", [1, 3, 30, 80, 128])
@pytest.mark.parametrize("pixels", [1, 5, 64, 255, 1024])
def test_the_tile_of_a_group(size, pixels):
    for element_size, buffers in itertools.product((2, 4), range(1, 4)):
        tile = group_tile(size, pixels, element_size, buffers)
        assert size <= tile.block_c < 2 * size + 1
        assert tile.block_c * tile.block_p <= 8 * tile.threads <= 8 * 512
        assert 2 * tile.block_p < 2 * pixels + 1


def test_no_more_programs_than_run_at_once():
    """Unless there are as many blocks of channels and images."""
    for multiprocessors in (60, 108, 132, 148):
        for join in (j for m in MODELS for j in joins(m)):
            p = launch_parameters(join.batch, join.hidden, join.skip, join.height * join.width, True, multiprocessors)
            assert join.batch * p.blocks * p.splits <= max(2 * multiprocessors, join.batch * p.blocks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skip": torch.zeros(2, 12, 5, 6)}, "agree in N, H and W"),
        ({"skip": torch.zeros(2, 12, 5, 7).half()}, "cast one first"),
        ({"num_groups": 5}, "num_groups=5 does not divide the 32 channels"),
        ({"weight": torch.zeros(31)}, r"must be \(32,\)"),
        ({"h3": torch.zeros(2, 20, 5, 7), "mix": torch.ones(2)}, "h3 was given without h2"),
        ({"h2": torch.zeros(2, 20, 5, 7)}, "need mix"),
        ({"h2": torch.zeros(2, 20, 5, 7), "mix": torch.ones(3)}, r"mix must be float32 of shape \(2,\)"),
        ({"h2": torch.zeros(2, 21, 5, 7), "mix": torch.ones(2)}, "every buffer must be like h"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refusals_carry_the_values(change, message):
    arguments = norm_arguments(kernel_checks.SHAPE, torch.float32, torch.contiguous_format) | change
    for function in (cat_group_norm_silu, cat_group_norm_silu_triton):
        with pytest.raises(ValueError, match=message):
            function(**arguments)


def test_the_launcher_refuses_float64():
    with pytest.raises(ValueError, match=r"takes float32, float16 and bfloat16, got torch\.float64"):
        cat_group_norm_silu_triton(**norm_arguments(kernel_checks.SHAPE, torch.float64, torch.contiguous_format))


# The traffic.


def _group_channels(c1, c2, groups, block_c):
    """For each block of channels, how many groups the merge loads for it, and how many channels these have."""
    size = (c1 + c2) // groups
    for start, channels in ((0, c1), (c1, c2)):
        for c in range(start, start + channels, block_c):
            # Lanes of the block beyond its source count too, as far as there are groups.
            first, touched = c // size, groups_of_block(block_c, size)
            loaded = min(touched, groups - first)
            yield loaded, loaded * size


def _model(batch, c1, c2, groups, pixels, channels_last, element_size, multiprocessors=MULTIPROCESSORS):
    """Bytes by kernel and argument that the launch parameters of two launches promise."""
    p = launch_parameters(batch, c1, c2, pixels, channels_last, multiprocessors)
    channels = c1 + c2
    h, skip = (batch * c * pixels * element_size for c in (c1, c2))
    # One pixel of each chunk, to which the means of lanes are related.
    h_first, skip_first = (batch * c * p.splits * element_size for c in (c1, c2))
    partials = 4 * batch * p.splits * channels
    merged_groups, merged = map(sum, zip(*_group_channels(c1, c2, groups, p.block_c), strict=True))
    programs = 4 * batch * p.splits
    affine = batch * p.splits * channels * element_size
    return {
        "channel_statistics_kernel": {
            ("h", "load"): h + h_first,
            ("skip", "load"): skip + skip_first,
            ("means", "store"): partials,
            ("m2s", "store"): partials,
        },
        "normalize_silu_kernel": {
            ("h", "load"): h,
            ("skip", "load"): skip,
            # All chunks but the last twice, the second time from L1, and one mean of each group once more.
            ("means", "load"): programs * ((2 * p.splits - 1) * merged + merged_groups),
            ("m2s", "load"): programs * p.splits * merged,
            ("weight", "load"): affine,
            ("bias", "load"): affine,
            ("out", "store"): h + skip,
        },
    }


def _one_launch_model(batch, c1, c2, groups, pixels, element_size):
    """Those of one launch."""
    h, skip = (batch * c * pixels * element_size for c in (c1, c2))
    size = (c1 + c2) // groups
    h_first = -(-c1 // size)  # groups that begin in h
    affine = batch * (c1 + c2) * element_size
    return {
        "cat_group_norm_silu_kernel": {
            ("h", "load"): 2 * h + batch * h_first * element_size,
            ("skip", "load"): 2 * skip + batch * (groups - h_first) * element_size,
            ("weight", "load"): affine,
            ("bias", "load"): affine,
            ("out", "store"): h + skip,
        }
    }


TRAFFIC = [
    SPLIT,
    Shape("the seam of 640+320 at a tenth", 2, 64, 32, 32, 32, 12, 16),
    Shape("odd", 2, 37, 23, 8, 3, 13, 21),
]


@pytest.mark.parametrize("multiprocessors", [MULTIPROCESSORS, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", TRAFFIC, ids=lambda s: s.why)
def test_traffic_is_what_the_model_says(interpreter, shape, layout, multiprocessors):
    arguments = norm_arguments(shape, torch.bfloat16, LAYOUTS[layout])
    counted = interpreter("support.kernel_worker", "traffic_of_two_launches", multiprocessors, **arguments)
    pixels, channels_last = shape.height * shape.width, layout == "channels_last"
    model = _model(shape.batch, shape.hidden, shape.skip, shape.groups, pixels, channels_last, 2, multiprocessors)
    assert [(name, dict(bytes_of)) for name, bytes_of in counted] == list(model.items())


@pytest.mark.parametrize("shape", [TRAFFIC[1], SMALL, EDGES[6]], ids=lambda s: s.why)
def test_traffic_of_one_launch_is_what_the_model_says(interpreter, shape):
    arguments = norm_arguments(shape, torch.bfloat16, torch.channels_last)
    counted = interpreter("support.kernel_worker", "traffic", OP, **arguments)
    model = _one_launch_model(shape.batch, shape.hidden, shape.skip, shape.groups, shape.height * shape.width, 2)
    assert [(name, dict(bytes_of)) for name, bytes_of in counted] == list(model.items())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("join", [j for m in MODELS for j in joins(m)], ids=str)
def test_traffic_of_the_real_joins(join, channels_last):
    """6 bytes for each element of the concat in bfloat16, and little besides; with one launch 2 of the 6 from L1."""
    pixels = join.height * join.width
    elements = join.concat_elements
    sizes = (join.batch, join.hidden, join.skip, join.groups, pixels)
    if one_launch(join.hidden, join.skip, join.groups, pixels, channels_last):
        (only,) = _one_launch_model(*sizes, 2).values()
        assert only["out", "store"] == 2 * elements
        assert 4 * elements <= only["h", "load"] + only["skip", "load"] <= 4.001 * elements
        return
    first, second = _model(*sizes, channels_last, 2).values()
    activations = sum(
        n for launch in (first, second) for (name, _), n in launch.items() if name in ("h", "skip", "out")
    )
    assert 6 * elements <= activations <= 6.04 * elements
    partials = first["means", "store"] + first["m2s", "store"]
    assert 2 * partials <= 0.042 * activations  # written once, and read from DRAM at most once
    merged = 2 * second["m2s", "load"]  # there are as many means
    assert merged <= 0.24 * 4 * elements  # of what launch 2 reads and writes, from L2


TWO_LAUNCHES = [
    j for m in MODELS for j in joins(m) if not one_launch(j.hidden, j.skip, j.groups, j.height * j.width, True)
]


@pytest.mark.parametrize("join", TWO_LAUNCHES, ids=str)
def test_the_chip_is_filled(join):
    """Nine tenths of the programs that an H100 runs at once, two for each of its 132 multiprocessors."""
    p = launch_parameters(join.batch, join.hidden, join.skip, join.height * join.width, True, MULTIPROCESSORS)
    assert join.batch * p.blocks * p.splits >= 0.9 * 2 * MULTIPROCESSORS


# The code for real GPUs.


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
# and, across the seam, of 60 channels. All dtypes, tiles (channels_last, contiguous, contiguous below 256 pixels) and
# numbers of buffers; most are slow.
TWO, TWO_SMALL, ONE, ONE_SEAM = ((640, 320), 64), ((640, 320), 8), ((1280, 1280), 16), ((1280, 640), 16)
KERNELS = ["channel_statistics_kernel", "normalize_silu_kernel"]
JOINS = [("channels_last", TWO), ("contiguous", TWO), ("contiguous", TWO_SMALL)]
JOINS_OF_ONE = [("channels_last", ONE), ("channels_last", ONE_SEAM)]
FAST = [
    *itertools.product(KERNELS, ["bf16"], JOINS[:2], [0]),
    *itertools.product(KERNELS, ["fp32"], JOINS[:1], [3]),
    *itertools.product(["cat_group_norm_silu_kernel"], ["bf16"], JOINS_OF_ONE, [0]),
    ("cat_group_norm_silu_kernel", "fp32", JOINS_OF_ONE[1], 3),
]
CONFIGURATIONS = FAST + [
    slow(*c)
    for c in [
        *itertools.product(KERNELS, DTYPES, JOINS, range(4)),
        *itertools.product(["cat_group_norm_silu_kernel"], DTYPES, JOINS_OF_ONE, range(4)),
    ]
    if c not in FAST
]


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


# On a GPU: numbers of all joins, and a few of them compiled, so that each test takes seconds.


def on_the_gpu(shape, dtype, layout):
    arguments = norm_arguments(shape, DTYPES[dtype], LAYOUTS[layout])
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dtype", "layout"), gpu_cases())
def test_on_the_gpu(shape, dtype, layout):
    arguments = on_the_gpu(shape, dtype, layout)
    result = cat_group_norm_silu(**arguments)
    assert_as_good_as_stock(result, stock_norm(arguments), cat_group_norm_silu_reference(**widened(arguments)))
    assert torch.equal(result, cat_group_norm_silu_triton(**arguments))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", compiled_cases(), ids=lambda s: s.why)
def test_compiled_on_the_gpu(shape):
    """dynamic=False and a reset: all of these are one code object, of which Dynamo compiles eight and no more."""
    arguments = on_the_gpu(shape, "fp16", "channels_last")
    torch.compiler.reset()
    compiled = torch.compile(lambda a: cat_group_norm_silu(**a), fullgraph=True, dynamic=False)
    assert torch.equal(cat_group_norm_silu(**arguments), compiled(arguments))
