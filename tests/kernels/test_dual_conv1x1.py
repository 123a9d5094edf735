"""The two-input 1x1 convolution: values in Triton's interpreter and on a GPU, refusals, traffic and machine code."""

import functools
import itertools
import re

import pytest
import torch
from stepcache.kernels.dual_conv1x1 import dual_conv1x1, dual_conv1x1_reference, dual_conv1x1_triton
from stepcache.kernels.dual_conv1x1.kernel import dual_conv1x1_kernel
from stepcache.kernels.dual_conv1x1.launch import IEEE_TILES, TENSOR_TILES, tile, tiles
from stepcache.kernels.dual_conv1x1.op import _launch
from support import kernel_checks
from support.kernel_aot import assert_no_spills, slow
from support.kernel_cases import (
    DTYPES,
    LAYOUTS,
    SHAPES,
    Shape,
    assert_as_good_as_stock,
    compiled_cases,
    conv_arguments,
    gpu_cases,
    numeric_cases,
    on_the_gpu,
    stock_conv,
    widened,
)
from support.kernel_fake_gpu import launches

from benchmarks.kernels.compile import SHARED_LIMIT, TARGETS, compile_launch

OP = "dual_conv1x1"
HALVES = Shape("halves of two buffers, several tiles", 4, 40, 24, 70, 4, 5, 9, mix=2, halves=True)
SMALL = Shape("several tiles, the last ones partly empty", 2, 40, 24, 70, 4, 5, 9)


# The numbers.


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.why)
def test_reference_is_the_stock_operations(shape):
    arguments = widened(conv_arguments(shape, torch.float32, torch.contiguous_format))
    torch.testing.assert_close(dual_conv1x1_reference(**arguments), stock_conv(arguments))


@pytest.mark.parametrize(("shape", "dtype", "layout"), numeric_cases(SMALL))
def test_kernel_against_float64(interpreter, shape, dtype, layout):
    arguments = conv_arguments(shape, DTYPES[dtype], LAYOUTS[layout])
    result = interpreter("support.kernel_worker", "run", OP, **arguments)
    exact = dual_conv1x1_reference(**widened(arguments))
    assert_as_good_as_stock(result, stock_conv(arguments), exact)
    assert result.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_with_and_without_bias_and_residual(interpreter, bias, residual):
    arguments = conv_arguments(SMALL, torch.float16, torch.channels_last, residual=residual)
    if not bias:
        arguments["bias"] = None
    result = interpreter("support.kernel_worker", "run", OP, **arguments)
    assert_as_good_as_stock(result, stock_conv(arguments), dual_conv1x1_reference(**widened(arguments)))


@pytest.mark.parametrize("odd", ["h", "skip", "residual", "weight"])
def test_mixed_layouts_are_taken(interpreter, odd):
    arguments = conv_arguments(SMALL, torch.float32, torch.channels_last)
    exact = dual_conv1x1_reference(**widened(arguments))
    result = interpreter("support.kernel_worker", "run", OP, **arguments | {odd: arguments[odd].contiguous()})
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("channels_last", [True, False])
def test_beyond_2_to_the_31_elements(interpreter, channels_last, halves):
    results = interpreter("support.kernel_huge", "conv_at_the_end", channels_last, halves)
    torch.testing.assert_close(*results, rtol=0, atol=4e-3)


@pytest.mark.parametrize("what", ["conv_wide_rows", "conv_wide_pixels"])
def test_offsets_within_a_tile_beyond_2_to_the_31(interpreter, what):
    torch.testing.assert_close(*interpreter("support.kernel_huge", what), rtol=0, atol=4e-3)


def test_rows_that_need_64_bits_are_noticed():
    def wide(pixels):
        h = torch.empty(1, 16, 1, pixels, dtype=torch.float16, device="meta")
        weight = torch.empty(16, 32, 1, 1, dtype=torch.float16, device="meta")
        return _launch(h, h, weight, None, None, None, None, None)[1]["WIDE"]

    assert not wide(2**24 - 1)
    assert wide(2**24)


# The op.


def test_on_cuda_it_is_one_launch_and_nothing_else():
    """It copies no argument, and passes no pointer to something that the kernel does not read."""
    shapes = [(2, 640, 24, 40), (2, 320, 24, 40), (320, 960, 1, 1), (320,), (2, 320, 24, 40)]
    (launch,), others = launches(dual_conv1x1_triton, shapes)
    assert launch.kernel == "dual_conv1x1_kernel"
    assert launch.grid == (2 * 24 * 40 // 128 * 5,)  # 128 pixels x 64 of 320 output channels
    assert [name for name, value in launch.arguments.items() if value is None] == ["h2", "h3", "mix", "residual_bias"]
    assert others == ["empty"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(6, 31, 1, 1)}, r"weight must be \[O, 20 \+ 12, 1, 1\]"),
        ({"weight": torch.zeros(6, 32, 1, 1).half()}, "must agree in dtype"),
        ({"bias": torch.zeros(7)}, r"^bias must be \(6,\)"),
        ({"residual_bias": torch.zeros(5)}, r"residual_bias must be \(6,\), got \(5,\)"),
        ({"residual": torch.zeros(2, 6, 5, 8)}, r"residual must be \(2, 6, 5, 7\)"),
        ({"skip": torch.zeros(1, 12, 5, 7)}, "agree in N, H and W"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refusals_carry_the_values(change, message):
    arguments = conv_arguments(kernel_checks.SHAPE, torch.float32, torch.contiguous_format) | change
    for function in (dual_conv1x1, dual_conv1x1_triton):
        with pytest.raises(ValueError, match=message):
            function(**arguments)


# The traffic.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_traffic(interpreter, layout):
    """Both inputs are read once for each block of output channels (after the first time from L2). No partial result."""
    arguments = conv_arguments(SMALL, torch.bfloat16, LAYOUTS[layout])
    ((name, counted),) = interpreter("support.kernel_worker", "traffic", OP, **arguments)
    assert name == "dual_conv1x1_kernel"
    pixels = SMALL.height * SMALL.width
    images, size = (1, SMALL.batch * pixels) if layout == "channels_last" else (SMALL.batch, pixels)
    t = tile(images, size, SMALL.hidden, SMALL.skip, SMALL.out, 2, "ieee", 0, 132)
    o_blocks = -(-SMALL.out // t.block_o)
    p_blocks = images * -(-size // t.block_p)
    size_of = {k: 2 * v.numel() for k, v in arguments.items()}
    assert counted == {
        ("h", "load"): o_blocks * size_of["h"],
        ("skip", "load"): o_blocks * size_of["skip"],
        ("weight", "load"): p_blocks * size_of["weight"],
        ("bias", "load"): p_blocks * size_of["bias"],
        ("residual_bias", "load"): p_blocks * size_of["residual_bias"],
        ("residual", "load"): size_of["residual"],
        ("out", "store"): size_of["residual"],
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_halves_read_no_buffer_twice(interpreter, layout):
    """A program has the same pixels of both halves, so it sums both from one read of each buffer."""
    arguments = conv_arguments(HALVES, torch.bfloat16, LAYOUTS[layout])
    plain = arguments | {"mix": arguments["mix"][0].contiguous()}
    (_, halves), (_, before) = (
        interpreter("support.kernel_worker", "traffic", OP, **given)[0] for given in (arguments, plain)
    )
    loaded = {("h", "load"), ("h2", "load"), ("skip", "load"), ("residual", "load"), ("out", "store")}
    assert loaded < set(halves)
    assert {what: halves[what] for what in loaded} == {what: before[what] for what in loaded}


# The code for real GPUs.


@functools.cache
def _meta_launch(dtype, layout, mix, halves):
    """The launch of the 640+320 to 320 join with bias and residual on the meta device."""

    def tensor(*shape):
        layout_of = {"memory_format": LAYOUTS[layout]} if len(shape) == 4 else {}
        return torch.empty(shape, dtype=DTYPES[dtype], device="meta", **layout_of)

    h, skip, residual = (tensor(2, channels, 64, 64) for channels in (640, 320, 320))
    h2, h3 = (h if mix > i else None for i in (1, 2))
    weights = torch.empty((2, mix) if halves else mix, device="meta") if mix else None
    return _launch(h, skip, tensor(320, 960, 1, 1), tensor(320), residual, h2, h3, weights, tensor(320))[1]


# Dtype, how float32 is multiplied, layout, buffers of the mix, whether its halves take from each other, and which tile.
# fp16 differs from bf16 in conversions alone. Three buffers take the most registers, and as much shared memory as none;
# the joins are compiled with both. sm_80 has the instructions of sm_89 and more shared memory, so it compiles what the
# joins run only.
EACH, EACH_IEEE = range(len(TENSOR_TILES)), range(len(IEEE_TILES))
JOINS = [
    *itertools.product(["bf16"], ["ieee"], ["channels_last"], [0, 3], [False], EACH),
    *itertools.product(["bf16"], ["ieee"], ["channels_last"], [2, 3, 1], [True], EACH),
]
OTHERS = [
    *itertools.product(["bf16"], ["ieee"], ["contiguous"], [3], [False, True], EACH),
    *itertools.product(["fp32"], ["tf32"], LAYOUTS, [3], [False, True], EACH),
    *itertools.product(["fp32"], ["ieee"], LAYOUTS, [3], [False, True], EACH_IEEE),
]
FAST = [(*join, "sm_90") for join in (*JOINS[: len(EACH) + 1], JOINS[2 * len(EACH)])]
CASES = [
    case if case in FAST else slow(*case)
    for case in [
        *((*join, target) for join in JOINS for target in TARGETS),
        *((*other, target) for other in OTHERS for target in TARGETS if target != "sm_80"),
    ]
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_compiles_ahead_of_time(case):
    dtype, precision, layout, mix, halves, index, target = case
    t = tiles(DTYPES[dtype].itemsize, precision, mix)[index]
    chosen = {"BLOCK_P": t.block_p, "BLOCK_O": t.block_o, "BLOCK_K": t.block_k, "PRECISION": precision}
    chosen["ROUND"] = precision == "tf32" and target != "gfx942"
    options = {"num_warps": t.num_warps, "num_stages": t.num_stages}
    code = compile_launch(dual_conv1x1_kernel, _meta_launch(dtype, layout, mix, halves) | chosen | options, target)
    assert_no_spills(code, target)
    assert code.shared <= SHARED_LIMIT[target]
    if target == "gfx942":
        # The larger tile of a step gives each of 64 threads a warp 16 bytes, or 8 where the smallest tile is halved.
        rows = max(t.block_p // 2 if halves else t.block_p, t.block_o)
        words = min(rows * t.block_k * DTYPES[dtype].itemsize // (64 * t.num_warps) // 4, 4)
        assert words >= 2 and f"global_load_dwordx{words}" in code.asm and "v_mfma" in code.asm
        return
    assert re.search(r"cp\.async\.cg\.shared\.global \[[^]]+\], \[[^]]+\], 0x10", code.asm)
    if dtype != "fp32" or precision == "tf32":
        assert re.search(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", code.asm)
    assert ("cvt.rna.tf32.f32" in code.asm) == (precision == "tf32")
    if target == "sm_90" and dtype == "bf16" and mix == 0:
        # A multiprocessor has 65536 registers, so it can run two programs of 8 warps at once, or four of 4.
        assert code.registers <= 128


# On a GPU: values of all joins, and a few of them compiled, so that each test takes seconds.


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dtype", "layout"), gpu_cases())
def test_on_the_gpu(shape, dtype, layout):
    arguments = on_the_gpu(conv_arguments(shape, DTYPES[dtype], LAYOUTS[layout]))
    result = dual_conv1x1(**arguments)
    assert_as_good_as_stock(result, stock_conv(arguments), dual_conv1x1_reference(**widened(arguments)))
    assert torch.equal(result, dual_conv1x1_triton(**arguments))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", compiled_cases(), ids=lambda s: s.why)
def test_compiled_on_the_gpu(shape):
    """Static and after a reset: all these are one code object, and Dynamo compiles at most eight versions of one."""
    arguments = on_the_gpu(conv_arguments(shape, torch.float16, torch.channels_last))
    torch.compiler.reset()
    compiled = torch.compile(lambda a: dual_conv1x1(**a), fullgraph=True, dynamic=False)
    assert_as_good_as_stock(compiled(arguments), stock_conv(arguments), dual_conv1x1_reference(**widened(arguments)))
