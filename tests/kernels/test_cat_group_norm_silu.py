"""concat -> GroupNorm -> SiLU: values in Triton's interpreter and on a GPU, and refusals."""

import pytest
import torch
from stepcache.kernels.cat_group_norm_silu import (
    cat_group_norm_silu,
    cat_group_norm_silu_reference,
    cat_group_norm_silu_triton,
)
from stepcache.kernels.cat_group_norm_silu.launch import one_launch
from support import kernel_checks
from support.kernel_cases import (
    DTYPES,
    EDGES,
    HALVES,
    LAYOUTS,
    MIXES,
    SHAPES,
    Shape,
    assert_as_good_as_stock,
    compiled_cases,
    gpu_cases,
    norm_arguments,
    numeric_cases,
    on_the_gpu,
    stock_norm,
    widened,
)

OP = "cat_group_norm_silu"
# More than one chunk in both layouts, and the last one shorter; in channels_last more than are merged at once.
SPLIT = Shape("several chunks", 1, 40, 24, 8, 4, 25, 26)


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


@pytest.mark.parametrize("multiprocessors", [pytest.param(132, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [*EDGES, *MIXES[:3], *HALVES], ids=lambda s: s.why)
def test_two_launches_for_every_size(interpreter, shape, dtype, multiprocessors):
    """In channels_last, where most of these have one launch; on one multiprocessor a program walks many tiles."""
    arguments = norm_arguments(shape, DTYPES[dtype], torch.channels_last)
    result = interpreter("support.kernel_worker", "run_two_launches", multiprocessors, **arguments)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(result, stock_norm(arguments), exact)


# Ways to compute: layout, and multiprocessors of the two launches or None for one. With 8 there are five chunks.
WAYS = [("channels_last", None), ("channels_last", 1), ("channels_last", 8), ("contiguous", 1)]


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
    """With a mean of 1000 deviations, E[x^2] - E[x]^2 in float32 would keep one digit."""
    arguments = norm_arguments(SMALL, torch.float32, torch.channels_last)
    for name in ("h", "skip"):
        arguments[name] = arguments[name] + 1000
    exact = cat_group_norm_silu_reference(**widened(arguments))
    result = _run(interpreter, way, arguments)
    assert_as_good_as_stock(result, stock_norm(arguments), exact)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2e-3)


# How far the outliers go, and the ways to compute for which that is the worst case. Other ways are slow.
FAR = {1: WAYS, 32: WAYS[1:3], 128: [WAYS[0], WAYS[2]], 256: WAYS[3:], "a channel": WAYS}


@pytest.mark.parametrize(
    ("far", "way"),
    [
        pytest.param(far, way, marks=[] if way in worst else [pytest.mark.slow], id=f"{far}-{way}")
        for far, worst in FAR.items()
        for way in WAYS
    ],
)
def test_worst_cases_of_sums_of_differences(interpreter, way, far):
    """The samples that differences are taken from are outliers, 1000 deviations off.

    They are the first pixel of each channel; the first of each lane, of which there are 32 (two launches), 128 (one) or
    256 (contiguous); the first of five chunks (128 too); or a group's first channel.
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
@pytest.mark.parametrize("value", [pytest.param(3.0, marks=pytest.mark.slow), 1000.1])
def test_no_variance(interpreter, way, value):
    """A constant input is its own mean to the last bit, so only the bias is left."""
    arguments = norm_arguments(SMALL, torch.float32, torch.contiguous_format)
    arguments |= {name: torch.full_like(arguments[name], value) for name in ("h", "skip")}
    result = _run(interpreter, way, arguments)
    expected = torch.nn.functional.silu(arguments["bias"])[None, :, None, None].expand_as(result)
    torch.testing.assert_close(result, expected)
    if value == 3.0:  # 0 divided by 0
        assert _run(interpreter, way, arguments | {"eps": 0.0}).isnan().all()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_constant_channels(interpreter, way):
    """Each channel is constant, with its own value, so all variance is between channels."""
    arguments = norm_arguments(SMALL, torch.float32, torch.contiguous_format)
    for name in ("h", "skip"):
        arguments[name] = arguments[name][..., :1, :1].expand_as(arguments[name]) + 100
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(_run(interpreter, way, arguments), stock_norm(arguments), exact)


def test_float32_weight_and_bias_with_16_bit_activations(interpreter):
    arguments = norm_arguments(EDGES[0], torch.float16, torch.channels_last)
    arguments |= {name: arguments[name].float() for name in ("weight", "bias")}
    result = interpreter("support.kernel_worker", "run", OP, **arguments)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    assert_as_good_as_stock(result, cat_group_norm_silu_reference(**arguments), exact)


@pytest.mark.parametrize("odd", ["h", "skip"])
def test_mixed_layouts_and_slices_are_taken(interpreter, odd):
    arguments = norm_arguments(EDGES[6], torch.float32, torch.channels_last)
    exact = cat_group_norm_silu_reference(**widened(arguments))
    mixed = arguments | {odd: arguments[odd].contiguous()}
    every_second = arguments | {odd: arguments[odd].repeat_interleave(2, 3)[..., ::2]}
    for given in (mixed, every_second):
        result = interpreter("support.kernel_worker", "run", OP, **given)
        torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [EDGES[0], EDGES[6]], ids=["two launches", "one launch"])
def test_the_same_bits_in_any_order_of_programs(interpreter, shape):
    arguments = norm_arguments(shape, torch.float32, torch.channels_last)
    first, second = (interpreter("support.kernel_worker", name, OP, **arguments) for name in ("run", "run_backwards"))
    assert torch.equal(first, second)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_launch_2_walks_the_steps_of_launch_1_backwards(interpreter, layout):
    """L2 still has what was read last. All steps have two tiles here."""
    arguments = norm_arguments(Shape("full steps", 1, 40, 24, 8, 4, 32, 64), torch.bfloat16, LAYOUTS[layout])
    first, second = interpreter("support.kernel_worker", "tiles_of_two_launches", 4, **arguments)
    assert len(first) == len(set(first)) > 10
    assert second[::2] == first[::2][::-1]


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    ("channels_last", "c1", "one"),
    [(True, 80, False), (False, 80, False), (True, 96, True), (True, 80, True)],
    ids=["channels_last", "contiguous", "one launch", "one launch across the seam"],
)
def test_beyond_2_to_the_31_elements(interpreter, channels_last, c1, one, halves):
    torch.testing.assert_close(
        *interpreter("support.kernel_huge", "norm_at_the_end", channels_last, c1, one, halves), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("channels_last", [True, False])
def test_tiles_beyond_2_to_the_31_elements(interpreter, channels_last):
    torch.testing.assert_close(*interpreter("support.kernel_huge", "norm_wide", channels_last), rtol=1e-3, atol=2e-3)


# Refusals.


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
        ({"mix": torch.ones(2, 2)}, r"of shape \(1,\) or \(2, 1\) on cpu, got torch.float32 \(2, 2\)"),
        ({"mix": torch.ones(1, 1)}, r"of shape \(1,\) or \(2, 1\) on cpu, got torch.float32 \(1, 1\)"),
        (
            {"h": torch.zeros(3, 20, 5, 7), "skip": torch.zeros(3, 12, 5, 7), "mix": torch.ones(2, 1)},
            r"mix \(2, 1\) has weights for two halves, but h has a batch of 3",
        ),
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


# On a GPU: values of all joins, and a few of them compiled, so that each test takes seconds.


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dtype", "layout"), gpu_cases())
def test_on_the_gpu(shape, dtype, layout):
    arguments = on_the_gpu(norm_arguments(shape, DTYPES[dtype], LAYOUTS[layout]))
    result = cat_group_norm_silu(**arguments)
    assert_as_good_as_stock(result, stock_norm(arguments), cat_group_norm_silu_reference(**widened(arguments)))
    assert torch.equal(result, cat_group_norm_silu_triton(**arguments))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", compiled_cases(), ids=lambda s: s.why)
def test_compiled_on_the_gpu(shape):
    """Static and after a reset: all these are one code object, and Dynamo compiles at most eight versions of one."""
    arguments = on_the_gpu(norm_arguments(shape, torch.float16, torch.channels_last))
    torch.compiler.reset()
    compiled = torch.compile(lambda a: cat_group_norm_silu(**a), fullgraph=True, dynamic=False)
    assert torch.equal(cat_group_norm_silu(**arguments), compiled(arguments))
