"""Which tile the convolution uses for a shape, and how it multiplies float32."""

import subprocess
import sys

import pytest
import torch
from stepcache.kernels.dual_conv1x1 import dual_conv1x1_triton
from stepcache.kernels.dual_conv1x1.launch import (
    IEEE_TILES,
    LARGEST_BLOCK,
    STEP_BYTES,
    TENSOR_TILES,
    programs,
    tile,
    tiles,
)
from support.kernel_fake_gpu import launches

from benchmarks.kernels.bench import MODELS, joins

WAYS = [(2, "ieee"), (4, "tf32"), (4, "ieee")]
MULTIPROCESSORS = {"A100": 108, "RTX 4090": 128, "H100": 132, "B200": 148, "MI300X": 304}
REAL = sorted({(j.batch * j.height * j.width, j.hidden, j.skip, j.out) for m in MODELS for j in joins(m)})


@pytest.mark.parametrize(("element_size", "precision"), WAYS)
@pytest.mark.parametrize("gpu", MULTIPROCESSORS)
def test_no_multiprocessor_is_idle_where_there_is_work(gpu, element_size, precision):
    """Half of them have a program, or the smallest tile is used; and no tile is larger than the join."""
    smallest = tiles(element_size, precision, 0)[-1]
    for pixels, *join in REAL:
        t = tile(1, pixels, *join, element_size, precision, 0, MULTIPROCESSORS[gpu])
        wanted = min(MULTIPROCESSORS[gpu] / 2, programs(smallest, 1, pixels, join[-1]))
        assert programs(t, 1, pixels, join[-1]) >= wanted, (pixels, join)
        assert t.block_p <= pixels and t.block_o <= join[-1], (pixels, join)


def test_the_tiles_of_the_real_joins_on_an_h100():
    """In 16 bits. The largest joins run with the largest tile, which loads the fewest bytes."""
    chosen = {
        (pixels, *join): tile(1, pixels, *join, 2, "ieee", 0, MULTIPROCESSORS["H100"])[:2] for pixels, *join in REAL
    }
    assert {t for (pixels, *_), t in chosen.items() if pixels == 128} == {(64, 32)}
    assert {t for (pixels, *_), t in chosen.items() if pixels == 512} == {(128, 64)}
    assert {t for (pixels, *_), t in chosen.items() if pixels >= 2048} == {(128, 128)}


@pytest.mark.parametrize(("pixels", "out_channels"), [(1, 1), (16, 320), (100, 20), (8192, 4), (60, 1280)])
def test_a_tile_is_at_least_half_full_or_the_smallest(pixels, out_channels):
    t = tile(1, pixels, 64, 64, out_channels, 2, "ieee", 0, 132)
    full = t.block_p < 2 * pixels and t.block_o < 2 * out_channels
    assert full or t == tiles(2, "ieee", 0)[-1]


def test_halves_have_the_same_tiles_and_programs():
    """A tile has half of its pixels from each half, so there are as many; fewer than one program never."""
    for pixels, *join in REAL:
        plain = tile(1, pixels, *join, 2, "ieee", 2, 132)
        halves = tile(1, pixels // 2, *join, 2, "ieee", 2, 132, True)
        assert halves == plain
        assert programs(halves, 1, pixels // 2, join[-1], True) == programs(plain, 1, pixels, join[-1])
    smallest = tiles(2, "ieee", 1)[-1]
    assert tile(1, 1, 8, 8, 4, 2, "ieee", 1, 132, True) == smallest
    assert programs(smallest, 1, 1, 4, True) == 1


@pytest.mark.parametrize(("element_size", "precision"), WAYS)
@pytest.mark.parametrize("buffers", [0, 1, 2, 3])
def test_tiles_keep_what_the_launch_counts_on(element_size, precision, buffers):
    for t in tiles(element_size, precision, buffers):
        assert max(t.block_p, t.block_o, t.block_k) <= LARGEST_BLOCK
        assert t.block_k * element_size * (2 if buffers > 1 else 1) == STEP_BYTES
    for shapes in (TENSOR_TILES, IEEE_TILES):
        assert [p * o for p, o, *_ in shapes] == sorted((p * o for p, o, *_ in shapes), reverse=True)


def precision_of(dtype):
    """What a launch on a GPU gets."""
    shapes = [(2, 640, 24, 40), (2, 320, 24, 40), (320, 960, 1, 1), (320,)]
    (launch,), _ = launches(dual_conv1x1_triton, shapes, dtype=dtype)
    return launch.arguments["PRECISION"]


# Settings, set one after the other, and the precision that a float32 launch then gets. Only the first two use torch's
# old setting, which raises once a new one has been set.
SETTINGS = [
    ("cudnn.allow_tf32 = False", "ieee"),
    ("cudnn.allow_tf32 = True", "tf32"),
    ("cudnn.conv.fp32_precision = 'ieee'", "ieee"),
    ("cudnn.conv.fp32_precision = 'tf32'", "tf32"),
    ("cudnn.conv.fp32_precision = 'none'", "ieee"),  # and nothing is set above it
    ("cudnn.fp32_precision = 'tf32'", "tf32"),
    ("fp32_precision = 'ieee'", "tf32"),  # cuDNN's own setting wins over that of all backends
    ("cudnn.fp32_precision = 'none'", "ieee"),
    ("fp32_precision = 'tf32'", "tf32"),
]


def precisions():
    found = []
    for setting, _ in SETTINGS:
        exec(f"torch.backends.{setting}")
        found.append(precision_of(torch.float32))
    return found


def test_float32_is_multiplied_as_torch_lets_convolutions_multiply_it():
    """In its own process, because not every setting can be undone."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_dual_conv1x1_launch as t; print(*t.precisions())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [expected for _, expected in SETTINGS]


def test_without_any_setting_it_is_torch_s_default():
    assert precision_of(torch.float32) == "tf32"


def test_16_bits_do_not_ask(monkeypatch):
    class Unread:
        @property
        def fp32_precision(self):
            raise AssertionError("read")

    monkeypatch.setattr(type(torch.backends.cudnn), "conv", Unread())
    assert precision_of(torch.bfloat16) == "ieee"
    with pytest.raises(AssertionError, match="read"):
        precision_of(torch.float32)
