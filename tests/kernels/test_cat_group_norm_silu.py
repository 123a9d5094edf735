"""concat -> GroupNorm -> SiLU: the numbers in the interpreter, the op in torch's machinery, the code for real GPUs."""

import functools
import itertools
import re

import kernel_checks
import pytest
import torch
from kernel_aot import slow, stack_allowed
from kernel_bench import MODELS, joins
from kernel_cases import (
    DTYPES,
    LAYOUTS,
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
from kernel_compile import SHARED_LIMIT, TARGETS, compile_launch
from kernel_fake_gpu import launches
from stepcache.kernels.cat_group_norm_silu import (
    cat_group_norm_silu,
    cat_group_norm_silu_reference,
    cat_group_norm_silu_triton,
)
from stepcache.kernels.cat_group_norm_silu.kernel import channel_statistics_kernel, normalize_silu_kernel
from stepcache.kernels.cat_group_norm_silu.launch import groups_of_block, launch_parameters
from stepcache.kernels.cat_group_norm_silu.op import _launches

OP = "cat_group_norm_silu"
SPLIT = Shape("two chunks", 1, 40, 24, 8, 4, 15, 18)


# The numbers.


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.why)
def test_reference_is_the_stock_operations(shape):
    arguments = widened(norm_arguments(shape, torch.float32, torch.contiguous_format))
    torch.testing.assert_close(cat_group_norm_silu_reference(**arguments), stock_norm(arguments))


@pytest.mark.parametrize(("shape", "dtype", "layout"), numeric_cases(SPLIT))
def test_kernels_against_float64(interpreter, shape, dtype, layout):
    arguments = norm_arguments(shape, DTYPES[dtype], LAYOUTS[layout])
    result = interpreter("kernel_worker", "run", OP, **arguments)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(result, stock_norm(arguments), exact)
    assert result.is_contiguous(memory_format=LAYOUTS[layout])


def test_mean_far_from_zero(interpreter):
    """At a mean of 1000 deviations E[x^2] - E[x]^2 in float32 would keep one digit."""
    arguments = norm_arguments(SPLIT, torch.float32, torch.channels_last)
    for name in ("h", "skip"):
        arguments[name] = arguments[name] + 1000
    result = interpreter("kernel_worker", "run", OP, **arguments)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2e-3)


def test_no_variance(interpreter):
    """A constant input is its own mean to the last bit, so what is left is the bias; eps = 0 divides 0 by 0."""
    arguments = norm_arguments(Shape("constant", 1, 8, 8, 8, 4, 3, 3), torch.float32, torch.contiguous_format)
    arguments |= {"h": torch.full_like(arguments["h"], 3.0), "skip": torch.full_like(arguments["skip"], 3.0)}
    result = interpreter("kernel_worker", "run", OP, **arguments)
    expected = torch.nn.functional.silu(arguments["bias"])[None, :, None, None].expand_as(result)
    torch.testing.assert_close(result, expected)
    assert interpreter("kernel_worker", "run", OP, **arguments | {"eps": 0.0}).isnan().all()


def test_float32_weight_and_bias_with_16_bit_activations(interpreter):
    arguments = norm_arguments(SPLIT, torch.float16, torch.channels_last)
    arguments |= {name: arguments[name].float() for name in ("weight", "bias")}
    result = interpreter("kernel_worker", "run", OP, **arguments)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(result, cat_group_norm_silu_reference(**arguments), exact)


@pytest.mark.parametrize("odd", ["h", "skip"])
def test_mixed_layouts_and_slices_are_taken(interpreter, odd):
    arguments = norm_arguments(SPLIT, torch.float32, torch.channels_last)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    mixed = arguments | {odd: arguments[odd].contiguous()}
    every_second = arguments | {odd: arguments[odd].repeat_interleave(2, 3)[..., ::2]}
    for given in (mixed, every_second):
        result = interpreter("kernel_worker", "run", OP, **given)
        torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_the_same_bits_in_any_order_of_programs(interpreter):
    arguments = norm_arguments(SPLIT, torch.float32, torch.channels_last)
    first, second = (interpreter("kernel_worker", name, OP, **arguments) for name in ("run", "run_backwards"))
    assert torch.equal(first, second)


@pytest.mark.parametrize("channels_last", [True, False])
def test_beyond_2_to_the_31_elements(interpreter, channels_last):
    torch.testing.assert_close(*interpreter("kernel_huge", "norm_at_the_end", channels_last), rtol=0, atol=2e-3)


def test_rows_beyond_2_to_the_27_elements(interpreter):
    torch.testing.assert_close(*interpreter("kernel_huge", "norm_wide_rows"))


# The op.


def test_opcheck(anywhere):
    anywhere("kernel_checks", "opcheck", OP)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_to_one_graph(anywhere, backend, dynamic):
    anywhere("kernel_checks", "compiles", OP, backend, dynamic)


def test_compiles_with_inductor():
    arguments = norm_arguments(kernel_checks.SHAPE, torch.float32, torch.channels_last)
    compiled = torch.compile(lambda a: cat_group_norm_silu(**a) * 1, fullgraph=True)
    torch.testing.assert_close(compiled(arguments), cat_group_norm_silu(**arguments))


@pytest.mark.parametrize("check", ["compiles_once_for_all_sizes", "exports", "knows_shapes"])
def test_dynamic_shapes_export_and_meta(anywhere, check):
    anywhere("kernel_checks", check, OP)


def test_on_cuda_it_is_two_launches_and_nothing_else():
    made, others = launches(cat_group_norm_silu_triton, [(2, 640, 24, 40), (2, 320, 24, 40), (960,), (960,)], 32, 1e-5)
    assert [launch.kernel for launch in made] == ["channel_statistics_kernel", "normalize_silu_kernel"]
    assert all(launch.arguments["num_warps"] == 8 for launch in made)
    assert set(others) <= {"empty", "empty_like"}


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
    """For each block of channels, how many channels its groups have together."""
    size = (c1 + c2) // groups
    for start, channels in ((0, c1), (c1, c2)):
        for c in range(start, start + channels, block_c):
            # Lanes of the block beyond its source count too, as far as there are groups.
            first, touched = c // size, groups_of_block(block_c, size)
            yield min(touched, groups - first) * size


def _model(batch, c1, c2, groups, pixels, channels_last, element_size):
    """Bytes by kernel and argument that the launch parameters promise."""
    p = launch_parameters(batch, c1, c2, pixels, channels_last)
    channels = c1 + c2
    h, skip = (batch * c * pixels * element_size for c in (c1, c2))
    partials = 4 * batch * p.splits * channels
    merged = 4 * batch * p.splits * p.splits * sum(_group_channels(c1, c2, groups, p.block_c))
    affine = batch * p.splits * channels * element_size
    return {
        "channel_statistics_kernel": {
            ("h", "load"): h,
            ("skip", "load"): skip,
            ("means", "store"): partials,
            ("m2s", "store"): partials,
        },
        "normalize_silu_kernel": {
            ("h", "load"): h,
            ("skip", "load"): skip,
            ("means", "load"): merged,
            ("m2s", "load"): merged,
            ("weight", "load"): affine,
            ("bias", "load"): affine,
            ("out", "store"): h + skip,
        },
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [SPLIT, Shape("the seam of 640+320 at a tenth", 2, 64, 32, 32, 32, 12, 16), Shape("odd", 2, 37, 23, 8, 3, 13, 21)],
    ids=lambda s: s.why,
)
def test_traffic_is_what_the_model_says(interpreter, shape, layout):
    arguments = norm_arguments(shape, torch.bfloat16, LAYOUTS[layout])
    counted = interpreter("kernel_worker", "traffic", OP, **arguments)
    pixels, channels_last = shape.height * shape.width, layout == "channels_last"
    model = _model(shape.batch, shape.hidden, shape.skip, shape.groups, pixels, channels_last, 2)
    assert [name for name, _ in counted] == list(model)
    for name, bytes_of in counted:
        assert dict(bytes_of) == model[name]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("join", [j for m in MODELS for j in joins(m)], ids=str)
def test_traffic_of_the_real_joins(join, channels_last):
    """6 bytes for each element of the concat in bfloat16; the partials add little, and most of that from L2."""
    pixels = join.height * join.width
    first, second = _model(join.batch, join.hidden, join.skip, join.groups, pixels, channels_last, 2).values()
    elements = join.concat_elements
    activations = sum(
        n for launch in (first, second) for (name, _), n in launch.items() if name in ("h", "skip", "out")
    )
    assert activations == 6 * elements
    partials = first["means", "store"] + first["m2s", "store"]
    assert 2 * partials <= 0.042 * activations  # written once, and read from DRAM at most once
    merged = second["means", "load"] + second["m2s", "load"]
    assert merged <= 0.25 * 4 * elements  # of what launch 2 reads and writes, from L2


@pytest.mark.parametrize("join", [j for m in MODELS for j in joins(m) if j.height >= 16], ids=str)
def test_the_chip_is_filled(join):
    """At 16 x 16 pixels and more, where the time goes, nine tenths of an H100's 132 multiprocessors have work."""
    p = launch_parameters(join.batch, join.hidden, join.skip, join.height * join.width, True)
    assert join.batch * p.blocks * p.splits >= 0.9 * 132


# The code for real GPUs.


@functools.cache
def _meta_launches(dtype, layout, pixels, mix):
    """Both launches of SDXL's 640+320 join (groups of 30 across the seam) on the meta device."""

    def tensor(channels):
        return torch.empty(
            2, channels, pixels, pixels, dtype=DTYPES[dtype], device="meta", memory_format=LAYOUTS[layout]
        )

    affine = torch.empty(960, dtype=DTYPES[dtype], device="meta")
    h2, h3 = (tensor(640) if mix > i else None for i in (1, 2))
    weights = torch.empty(mix, device="meta") if mix else None
    _, first, second, _ = _launches(tensor(640), tensor(320), affine, affine, 32, 1e-5, h2, h3, weights)
    return {channel_statistics_kernel: first, normalize_silu_kernel: second}


# All dtypes, tiles (channels_last, contiguous, contiguous below 256 pixels) and numbers of buffers; most are slow.
FAST = [("bf16", "channels_last", 64, 0), ("bf16", "contiguous", 64, 0), ("fp32", "channels_last", 64, 3)]
CONFIGURATIONS = FAST + [
    slow(*c)
    for c in itertools.product(DTYPES, LAYOUTS, [64, 8], range(4))
    if c not in FAST and (c[1] == "contiguous" or c[2] == 64)
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: "-".join(map(str, c)))
@pytest.mark.parametrize("kernel", [channel_statistics_kernel, normalize_silu_kernel], ids=lambda k: k.__name__)
def test_compiles_ahead_of_time(kernel, configuration, target):
    code = compile_launch(kernel, _meta_launches(*configuration)[kernel], target)
    assert code.spilled <= stack_allowed(target)
    assert code.shared <= SHARED_LIMIT[target]
    # Every load of a tile is 16 bytes a thread, through cp.async where the loop is pipelined. The statistics kernel
    # loads nothing else but the mix's weights.
    if target == "gfx942":
        assert "global_load_dwordx4" in code.asm
    else:
        assert re.search(r"cp\.async\.cg\.shared\.global \[[^]]+\], \[[^]]+\], 0x10", code.asm)
        assert not re.search(r"ld\.global\.b16|ld\.global\.v\d\.b16", code.asm) or configuration[1] == "contiguous"
        if kernel is normalize_silu_kernel:
            assert "st.global.v4.b32" in code.asm


@pytest.mark.parametrize(("hidden", "skip"), sorted({(j.hidden, j.skip) for m in MODELS for j in joins(m)}))
def test_compiles_for_every_group_size(hidden, skip):
    """A group has 20 to 80 channels, so the merge's tile differs from join to join."""
    h, s = (torch.empty(2, c, 32, 32, dtype=torch.bfloat16, device="meta") for c in (hidden, skip))
    affine = torch.empty(hidden + skip, dtype=torch.bfloat16, device="meta")
    _, _, arguments, _ = _launches(h, s, affine, affine, 32, 1e-5, None, None, None)
    assert compile_launch(normalize_silu_kernel, arguments, "sm_90").spilled == 0


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
