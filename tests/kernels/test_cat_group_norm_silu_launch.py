"""How a call of cat_group_norm_silu is divided into launches and programs, and the bytes that they load and store."""

import dataclasses
import itertools

import pytest
import torch
from stepcache.kernels.cat_group_norm_silu import cat_group_norm_silu_triton
from stepcache.kernels.cat_group_norm_silu.launch import group_tile, groups_of_block, launch_parameters, one_launch
from support.kernel_cases import EDGES, LAYOUTS, Shape, norm_arguments
from support.kernel_fake_gpu import launches

from benchmarks.kernels.bench import MODELS, joins

MULTIPROCESSORS = 132


# The launches.


def test_on_cuda_it_is_one_launch_or_two_and_nothing_else():
    for edge, kernels in (
        (24, ["channel_statistics_kernel", "normalize_silu_kernel"]),
        (16, ["cat_group_norm_silu_kernel"]),
    ):
        shapes = [(2, 640, edge, edge), (2, 320, edge, edge), (960,), (960,)]
        made, others = launches(cat_group_norm_silu_triton, shapes, 32, 1e-5)
        assert [launch.kernel for launch in made] == kernels
        assert all(launch.arguments[name] is None for launch in made for name in ("h2", "h3", "mix"))
        assert set(others) <= {"empty", "empty_like", "device"}


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
    for element_size, buffers in itertools.product((2, 4), range(1, 7)):  # with halves, each of three counts twice
        tile = group_tile(size, pixels, element_size, buffers)
        assert size <= tile.block_c < 2 * size + 1
        assert tile.block_c * tile.block_p <= 8 * tile.threads <= 8 * 512
        assert 2 * tile.block_p < 2 * pixels + 1


def test_no_more_programs_than_run_at_once():
    """Unless there are more blocks of channels, over all images, than fit at once."""
    for multiprocessors in (60, 108, 132, 148):
        for join in (j for m in MODELS for j in joins(m)):
            p = launch_parameters(join.batch, join.hidden, join.skip, join.height * join.width, True, multiprocessors)
            assert join.batch * p.blocks * p.splits <= max(2 * multiprocessors, join.batch * p.blocks)


# The traffic.


def _group_channels(c1, c2, groups, block_c):
    """For each block of channels, how many groups its merge loads, and how many channels they have."""
    size = (c1 + c2) // groups
    for start, channels in ((0, c1), (c1, c2)):
        for c in range(start, start + channels, block_c):
            # Lanes of the block beyond its source count too, up to the last group.
            first, touched = c // size, groups_of_block(block_c, size)
            loaded = min(touched, groups - first)
            yield loaded, loaded * size


def _model(batch, c1, c2, groups, pixels, channels_last, element_size, multiprocessors=MULTIPROCESSORS):
    """Bytes by kernel and argument that the parameters of two launches imply."""
    p = launch_parameters(batch, c1, c2, pixels, channels_last, multiprocessors)
    channels = c1 + c2
    h, skip = (batch * c * pixels * element_size for c in (c1, c2))
    # One pixel of each chunk, from which differences are taken.
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
            # Every chunk but the last twice, the second time from L1, and one mean of each group again.
            ("means", "load"): programs * ((2 * p.splits - 1) * merged + merged_groups),
            ("m2s", "load"): programs * p.splits * merged,
            ("weight", "load"): affine,
            ("bias", "load"): affine,
            ("out", "store"): h + skip,
        },
    }


def _one_launch_model(batch, c1, c2, groups, pixels, element_size):
    """The same for one launch."""
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
    Shape("several chunks", 1, 40, 24, 8, 4, 25, 42),
    Shape("the seam of 640+320 at a tenth", 2, 64, 32, 32, 32, 12, 16),
    Shape("odd", 2, 37, 23, 8, 3, 13, 21),
]
HALVES = Shape("halves of two buffers", 4, 40, 24, 24, 4, 25, 26, mix=2, halves=True)
TRAFFIC_OF_ONE = [
    Shape("a group across the seam", 2, 64, 32, 32, 8, 12, 16),
    Shape("uneven pixels", 1, 60, 60, 8, 4, 19, 31),
    EDGES[6],
]


@pytest.mark.parametrize("multiprocessors", [pytest.param(MULTIPROCESSORS, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", TRAFFIC, ids=lambda s: s.why)
def test_traffic_is_what_the_model_says(interpreter, shape, layout, multiprocessors):
    arguments = norm_arguments(shape, torch.bfloat16, LAYOUTS[layout])
    counted = interpreter("support.kernel_worker", "traffic_of_two_launches", multiprocessors, **arguments)
    pixels, channels_last = shape.height * shape.width, layout == "channels_last"
    model = _model(shape.batch, shape.hidden, shape.skip, shape.groups, pixels, channels_last, 2, multiprocessors)
    assert [(name, dict(bytes_of)) for name, bytes_of in counted] == list(model.items())


@pytest.mark.parametrize("shape", TRAFFIC_OF_ONE, ids=lambda s: s.why)
def test_traffic_of_one_launch_is_what_the_model_says(interpreter, shape):
    arguments = norm_arguments(shape, torch.bfloat16, torch.channels_last)
    counted = interpreter("support.kernel_worker", "traffic", "cat_group_norm_silu", **arguments)
    model = _one_launch_model(shape.batch, shape.hidden, shape.skip, shape.groups, shape.height * shape.width, 2)
    assert [(name, dict(bytes_of)) for name, bytes_of in counted] == list(model.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_halves_read_each_buffer_twice_and_nothing_else(interpreter, layout):
    """The second time as what the other half takes from it, which is then in L2."""

    def counted(shape):
        arguments = norm_arguments(shape, torch.bfloat16, LAYOUTS[layout])
        return interpreter("support.kernel_worker", "traffic_of_two_launches", 4, **arguments)

    plain, halves = (counted(dataclasses.replace(HALVES, halves=which)) for which in (False, True))
    for (kernel, before), (_, after) in zip(plain, halves, strict=True):
        twice = {("h", "load"), ("h2", "load"), ("mix", "load")}
        assert twice < set(before), kernel
        assert after == {what: 2 * n if what in twice else n for what, n in before.items()}, kernel


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("join", [j for m in MODELS for j in joins(m)], ids=str)
def test_traffic_of_the_real_joins(join, channels_last):
    """In bfloat16 little more than 6 bytes for each element of the concat. With one launch 2 of the 6 are from L1."""
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
    """At least 0.9 of the programs that an H100 runs at once, two for each of its 132 multiprocessors."""
    p = launch_parameters(join.batch, join.hidden, join.skip, join.height * join.width, True, MULTIPROCESSORS)
    assert join.batch * p.blocks * p.splits >= 0.9 * 2 * MULTIPROCESSORS
