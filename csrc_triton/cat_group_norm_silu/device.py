"""Device functions shared by all three kernels: tile offsets, loads, statistics of a lane, normalisation.

kernel.py has the formula and the numerics.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_indices(
    HW, C_SRC, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Channel and pixel indices of a tile, and its offsets in a source of C_SRC channels; the last axis is contiguous.

    A tile is [BLOCK_P, BLOCK_C] in channels_last and [BLOCK_C, BLOCK_P] in contiguous; the indices broadcast to it.
    A tile's start is always a 64-bit offset (`element_offset`). Offsets within a tile are 64-bit only if WIDE, which
    the launcher sets where they reach 2^31; elsewhere they would waste registers.
    """
    if CHANNELS_LAST:
        channel = tl.arange(0, BLOCK_C)[None, :]
        pixel = tl.arange(0, BLOCK_P)[:, None]
        offsets = (pixel.to(tl.int64) if WIDE else pixel) * C_SRC + channel
    else:
        channel = tl.arange(0, BLOCK_C)[:, None]
        pixel = tl.arange(0, BLOCK_P)[None, :]
        offsets = (channel.to(tl.int64) if WIDE else channel) * HW + pixel
    return channel, pixel, offsets


@triton.jit
def element_offset(n, c, p, HW, C_SRC, CHANNELS_LAST: tl.constexpr):
    """Offset of element (n, c, p) of a tensor of C_SRC channels; n is 64-bit, and so is the result."""
    if CHANNELS_LAST:
        return (n * HW + p) * C_SRC + c
    else:
        return (n * C_SRC + c) * HW + p


@triton.jit
def mix_weights(mix, NUM_MIX: tl.constexpr, HALVES: tl.constexpr):
    """The NUM_MIX weights as scalars, loaded before the loop that needs them; with HALVES, the other half's after them.

    Always six, of which those without a buffer are 1.
    """
    w1 = tl.load(mix) if NUM_MIX > 0 else 1.0
    w2 = tl.load(mix + 1) if NUM_MIX > 1 else 1.0
    w3 = tl.load(mix + 2) if NUM_MIX > 2 else 1.0
    OTHERS: tl.constexpr = NUM_MIX if HALVES else 0
    v1 = tl.load(mix + NUM_MIX) if OTHERS > 0 else 1.0
    v2 = tl.load(mix + NUM_MIX + 1) if OTHERS > 1 else 1.0
    v3 = tl.load(mix + NUM_MIX + 2) if OTHERS > 2 else 1.0
    return w1, w2, w3, v1, v2, v3


@triton.jit
def to_other_half(n, HW, C_SRC):
    """How far image n's partner in the other half of the batch is from it, in elements. The grid's first axis is N."""
    half = tl.num_programs(0) // 2
    return tl.where(n < half, half, -half).to(tl.int64) * HW * C_SRC


@triton.jit
def fetch(source, source2, source3, weights, half, offsets, other, other_offsets, mask, own, NUM_MIX: tl.constexpr):
    """Load elements of a source: as they are, in its dtype (NUM_MIX = 0), or NUM_MIX buffers combined in float32.

    Without a mix they stay in the source's dtype, so that a tile in flight takes as few registers as possible. Elements
    outside `mask` are undefined. own: the elements that source2 and source3 have. other: the source beyond the seam, or
    None; with it, `own` holds for `source` too, and all other elements come from `other`. half: `to_other_half`, or
    None if no buffer is read for the other half of the batch. There the programs of an image and of its partner run
    side by side, and what one of them loads, the other finds in L2.
    """
    w1, w2, w3, v1, v2, v3 = weights
    own = mask & own
    x = tl.load(source + offsets, mask=mask if other is None else own)
    if NUM_MIX > 0:
        x = x.to(tl.float32) * w1
    if NUM_MIX > 1:
        x += w2 * tl.load(source2 + offsets, mask=own, other=0.0).to(tl.float32)
    if NUM_MIX > 2:
        x += w3 * tl.load(source3 + offsets, mask=own, other=0.0).to(tl.float32)
    if half is not None:
        x += v1 * tl.load(source + (offsets + half), mask=own, other=0.0).to(tl.float32)
        if NUM_MIX > 1:
            x += v2 * tl.load(source2 + (offsets + half), mask=own, other=0.0).to(tl.float32)
        if NUM_MIX > 2:
            x += v3 * tl.load(source3 + (offsets + half), mask=own, other=0.0).to(tl.float32)
    if other is not None:
        # Two loads, one of which a lane skips. One load of pointers chosen lane by lane would be 2 bytes wide.
        y = tl.load(other + other_offsets, mask=mask & (own == 0))
        x = tl.where(own, x, y.to(x.dtype))
    return x


@triton.jit
def pixel_mask(p, pixel, end, inside, EVEN: tl.constexpr):
    """Which elements of the tile at pixel p exist; the program's pixels stop before `end`.

    EVEN: every tile is full, so either all of its elements exist or none. The product with 0 gives the comparison the
    tile's shape, because Triton's interpreter turns a boolean scalar into an integer when it broadcasts it.
    """
    return (p + (pixel * 0 if EVEN else pixel) < end) & inside


@triton.jit
def fetch_step(
    source,
    source2,
    source3,
    weights,
    half,
    at,
    offsets,
    stride,
    other,
    other_at,
    other_offsets,
    other_stride,
    mask1,
    mask2,
    own,
    NUM_MIX: tl.constexpr,
):
    """Load the two tiles of a step, the second one `stride` after the first.

    They are not one tile of three axes, because Triton 3.6 would spread the axis of two over the threads of a warp.
    """
    tile1 = fetch(
        source, source2, source3, weights, half, at + offsets, other, other_at + other_offsets, mask1, own, NUM_MIX
    )
    at += stride
    if other is not None:
        other_at += other_stride
    tile2 = fetch(
        source, source2, source3, weights, half, at + offsets, other, other_at + other_offsets, mask2, own, NUM_MIX
    )
    return tile1, tile2


@triton.jit
def lane_statistics(
    source,
    source2,
    source3,
    weights,
    half,
    at,
    offsets,
    stride,
    other,
    other_at,
    other_offsets,
    other_stride,
    pixel,
    inside,
    own,
    first,
    p_first,
    end,
    NUM_MIX: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Statistics of each lane of a tile over the pixels from p_first to `end`: mean minus `first`, M2, and count."""
    STEP: tl.constexpr = 2 * BLOCK_P
    mask1 = pixel_mask(p_first, pixel, end, inside, EVEN)
    mask2 = pixel_mask(p_first + BLOCK_P, pixel, end, inside, EVEN)
    ahead1, ahead2 = fetch_step(
        source, source2, source3, weights, half, at, offsets, stride, other, other_at, other_offsets, other_stride,
        mask1, mask2, own, NUM_MIX,
    )  # fmt: skip
    # The lane's first pixel.
    mean = ahead1.to(tl.float32)
    m2 = tl.zeros(mean.shape, tl.float32)
    count = 0.0 if EVEN else tl.zeros(pixel.shape, tl.float32)
    for p in tl.range(p_first, end, STEP, num_stages=1):
        delta1 = ahead1.to(tl.float32) - mean
        delta2 = ahead2.to(tl.float32) - mean
        if EVEN:
            count += 2.0
        else:
            exists1 = p + pixel < end
            exists2 = p + BLOCK_P + pixel < end
            delta1 = tl.where(exists1, delta1, 0.0)
            delta2 = tl.where(exists2, delta2, 0.0)
            count = tl.maximum(count + exists1.to(tl.float32) + exists2.to(tl.float32), 1.0)
        at += 2 * stride
        if other is not None:
            other_at += 2 * other_stride
        mask1 = pixel_mask(p + STEP, pixel, end, inside, EVEN)
        mask2 = pixel_mask(p + STEP + BLOCK_P, pixel, end, inside, EVEN)
        ahead1, ahead2 = fetch_step(
            source, source2, source3, weights, half, at, offsets, stride, other, other_at, other_offsets, other_stride,
            mask1, mask2, own, NUM_MIX,
        )  # fmt: skip
        total = delta1 + delta2
        shift = total * (1.0 / count)
        m2 += delta1 * delta1 + delta2 * delta2 - total * shift
        mean += shift
    if EVEN:
        shift = mean - first
    else:
        # A lane without pixels was counted as 1 so far. It has no mean.
        exists = p_first + pixel < end
        count = tl.where(exists, count, 0.0)
        shift = tl.where(exists, mean - first, 0.0)
        m2 = tl.where(exists, m2, 0.0)
    return shift, m2, count


@triton.jit
def silu(z):
    """z * sigmoid(z), with 1 / (1 + exp(-z)) computed as rsqrt(1 + exp(-z))^2; relative error up to 4e-7.

    A division adds range checks that a denominator of at least 1 does not need: it would make the loop of launch 2 226
    instead of 193 instructions on sm_90, and 362 instead of 223 on gfx942.
    """
    r = tl.rsqrt(1.0 + tl.exp2(z * -1.4426950408889634))
    return z * r * r


@triton.jit
def normalize(
    source,
    source2,
    source3,
    weights,
    half,
    at,
    offsets,
    stride,
    other,
    other_at,
    other_offsets,
    other_stride,
    out,
    out_at,
    out_offsets,
    out_stride,
    ahead1,
    ahead2,
    pixel,
    inside,
    own,
    mean,
    scale,
    shift,
    p_first,
    p_last,
    end,
    NUM_MIX: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Normalise, affine, SiLU and store, from the step at p_last back to p_first.

    ahead1, ahead2: the tiles of the step at p_last, already loaded.
    """
    STEP: tl.constexpr = 2 * BLOCK_P
    for back in tl.range(0, p_last - p_first + STEP, STEP, num_stages=1):
        x1 = ahead1.to(tl.float32)
        x2 = ahead2.to(tl.float32)
        at -= 2 * stride
        if other is not None:
            other_at -= 2 * other_stride
        # Only the step at p_last, the first one here, can be partial.
        more = pixel_mask(p_first + back, pixel, p_last, inside, True)
        ahead1, ahead2 = fetch_step(
            source, source2, source3, weights, half, at, offsets, stride, other, other_at, other_offsets, other_stride,
            more, more, own, NUM_MIX,
        )  # fmt: skip
        # Not x * scale + (shift - mean * scale), which cancels when |mean| is far above the deviation.
        y1 = silu((x1 - mean) * scale + shift)
        y2 = silu((x2 - mean) * scale + shift)
        p = p_last - back
        mask1 = inside if EVEN else pixel_mask(p, pixel, end, inside, EVEN)
        mask2 = inside if EVEN else pixel_mask(p + BLOCK_P, pixel, end, inside, EVEN)
        tl.store(out + (out_at + out_offsets), y1.to(out.dtype.element_ty), mask=mask1)
        tl.store(out + (out_at + out_stride + out_offsets), y2.to(out.dtype.element_ty), mask=mask2)
        out_at -= 2 * out_stride
