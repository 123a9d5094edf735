"""The kernels of the two launches: statistics of channels, then the merge into groups, affine and SiLU.

kernel.py has the formula, the numerics, and when one launch is used instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import (
    element_offset,
    fetch,
    fetch_step,
    lane_statistics,
    mix_weights,
    normalize,
    pixel_mask,
    tile_indices,
    to_other_half,
)


@triton.jit
def _chunk_statistics(
    source,
    source2,
    source3,
    mix,
    means,
    m2s,
    n,
    c,
    c_cat,
    p_first,
    row,
    HW,
    C_SRC,
    chunk,
    NUM_MIX: tl.constexpr,
    HALVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Mean and M2 of channels c .. c + BLOCK_C of one source over `chunk` pixels from p_first, stored at `row`."""
    channel, pixel, offsets = tile_indices(HW, C_SRC, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    P_AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    inside = channel < (BLOCK_C if EVEN_C else C_SRC - c)
    weights = mix_weights(mix, NUM_MIX, HALVES)
    half = to_other_half(n, HW, C_SRC) if HALVES else None
    at = element_offset(n, c, p_first, HW, C_SRC, CHANNELS_LAST)
    stride = BLOCK_P * (tl.cast(C_SRC, tl.int64) if CHANNELS_LAST else 1)
    end = tl.minimum(p_first + chunk, HW)
    # The channel's first pixel of the chunk. Means of lanes are summed as differences from it.
    first_at = at + (channel if CHANNELS_LAST else (channel.to(tl.int64) if WIDE else channel) * HW)
    first = fetch(source, source2, source3, weights, half, first_at, None, 0, inside, inside, NUM_MIX).to(tl.float32)
    shift, m2, count = lane_statistics(
        source, source2, source3, weights, half, at, offsets, stride, None, 0, 0, 0, pixel, inside, inside, first,
        p_first, end, NUM_MIX, EVEN_P, BLOCK_P,
    )  # fmt: skip
    # Merge all lanes of a channel: first the mean, then the squared distances from it.
    pixels = (end - p_first).to(tl.float32)
    channel_shift = tl.sum(shift * count, P_AXIS, keep_dims=True) * (1.0 / pixels)
    delta = shift - channel_shift
    channel_m2 = tl.sum(m2 + delta * delta * count, P_AXIS, keep_dims=True)
    tl.store(means + row + c_cat + channel, first + channel_shift, mask=inside)
    tl.store(m2s + row + c_cat + channel, channel_m2, mask=inside)


@triton.jit
def channel_statistics_kernel(
    h,
    h2,
    h3,
    mix,
    skip,
    means,
    m2s,
    HW,
    C1,
    C2,
    chunk,
    NUM_MIX: tl.constexpr,
    HALVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Launch 1: per-channel partials of both inputs. Grid: (N, blocks of channels, chunks of pixels).

    means, m2s: float32 [N, chunks, C1 + C2]. NUM_MIX (0 to 3) says how many of the buffers h, h2, h3 are mixed.
    HALVES: mix is [2, NUM_MIX], and each half of the batch takes from the other one too.
    """
    n = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    split = tl.program_id(2)
    p_first = split * chunk
    row = (n * tl.num_programs(2) + split) * (C1 + C2)
    h_blocks = tl.cdiv(C1, BLOCK_C)
    if block < h_blocks:
        c = block * BLOCK_C
        _chunk_statistics(
            h, h2, h3, mix, means, m2s, n, c, c, p_first, row, HW, C1, chunk,
            NUM_MIX, HALVES, CHANNELS_LAST, WIDE, EVEN_C, EVEN_P, BLOCK_C, BLOCK_P,
        )  # fmt: skip
    else:
        c = (block - h_blocks) * BLOCK_C
        _chunk_statistics(
            skip, None, None, None, means, m2s, n, c, C1 + c, p_first, row, HW, C2, chunk,
            0, False, CHANNELS_LAST, WIDE, EVEN_C, EVEN_P, BLOCK_C, BLOCK_P,
        )  # fmt: skip


@triton.jit
def _merge_groups(
    means,
    m2s,
    n,
    first_group,
    HW,
    C,
    splits,
    chunk,
    eps,
    GROUP_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Mean and 1 / sqrt(var + eps) of GROUPS groups from first_group on, each [GROUPS]; lanes past the last are unused.

    It merges the chunks of each channel in the channel's own lane, loading UNROLL at once, then the channels of a
    group, MEMBERS at a time (all of them, for the joins of real U-Nets). Both merges compute the mean first and then
    the squared distances from it. Every chunk has `chunk` pixels except the last, which stays out of the sums.
    """
    group = (first_group + tl.arange(0, GROUPS))[:, None]
    rows = n * splits * C
    full = splits - 1
    last_row = rows + full * C
    last_count = tl.cast(HW - full * chunk, tl.float32)
    full_count = tl.cast(chunk, tl.float32)
    pixels = tl.cast(HW, tl.float32)
    # A mean of the group's first channel. Means of channels are summed as differences from it.
    first = tl.load(means + last_row + group * GROUP_SIZE, mask=group * GROUP_SIZE < C, other=0.0)
    group_count = 0.0
    group_shift = tl.zeros((GROUPS,), tl.float32)
    group_m2 = tl.zeros((GROUPS,), tl.float32)
    for first_member in range(0, GROUP_SIZE, MEMBERS):
        member = (first_member + tl.arange(0, MEMBERS))[None, :]
        channel = group * GROUP_SIZE + member
        inside = (member < GROUP_SIZE) & (channel < C)
        last_mean = tl.load(means + last_row + channel, mask=inside, other=0.0)
        m2 = tl.load(m2s + last_row + channel, mask=inside, other=0.0)
        total = tl.zeros((GROUPS, MEMBERS), tl.float32)
        row = rows
        for first_split in range(0, full, UNROLL):
            for i in tl.static_range(UNROLL):
                mask = inside & (member * 0 + (first_split + i) < full)
                total += tl.load(means + row + channel, mask=mask, other=last_mean) - last_mean
                m2 += tl.load(m2s + row + channel, mask=mask, other=0.0)
                row += C
        last_delta = total * (full_count / pixels)
        mean = last_mean + last_delta
        squares = tl.zeros((GROUPS, MEMBERS), tl.float32)
        row = rows
        for first_split in range(0, full, UNROLL):
            for i in tl.static_range(UNROLL):
                # This second load comes from L1.
                mask = inside & (member * 0 + (first_split + i) < full)
                delta = tl.load(means + row + channel, mask=mask, other=mean) - mean
                squares += delta * delta
                row += C
        m2 += squares * full_count + last_delta * last_delta * last_count
        # Merge the channels, which all have the same count.
        part_count = tl.minimum(MEMBERS, GROUP_SIZE - first_member).to(tl.float32)
        shift = mean - first
        part_shift = tl.sum(tl.where(inside, shift, 0.0), 1) / part_count
        delta = shift - part_shift[:, None]
        part_m2 = tl.sum(tl.where(inside, m2 + delta * delta * pixels, 0.0), 1)

        merged = group_count + part_count
        delta = part_shift - group_shift
        share = part_count / merged
        group_shift += delta * share
        group_m2 += part_m2 + delta * delta * (group_count * share * pixels)
        group_count = merged
    return tl.reshape(first, (GROUPS,)) + group_shift, tl.rsqrt(group_m2 / (GROUP_SIZE * pixels) + eps)


@triton.jit
def _normalize_chunk(
    source,
    source2,
    source3,
    mix,
    weight,
    bias,
    means,
    m2s,
    out,
    n,
    c,
    c_cat,
    p_first,
    HW,
    C_SRC,
    C,
    splits,
    chunk,
    eps,
    GROUP_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    UNROLL: tl.constexpr,
    NUM_MIX: tl.constexpr,
    HALVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Normalise channels c .. c + BLOCK_C of one source, over `chunk` pixels from p_first, into out from c_cat on."""
    channel, pixel, offsets = tile_indices(HW, C_SRC, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    _, _, out_offsets = tile_indices(HW, C, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    STEP: tl.constexpr = 2 * BLOCK_P
    inside = channel < (BLOCK_C if EVEN_C else C_SRC - c)
    weights = mix_weights(mix, NUM_MIX, HALVES)
    half = to_other_half(n, HW, C_SRC) if HALVES else None
    end = tl.minimum(p_first + chunk, HW)
    p_last = p_first + (end - 1 - p_first) // STEP * STEP
    at = element_offset(n, c, p_last, HW, C_SRC, CHANNELS_LAST)
    # In flight during the merge, which waits for L2 and then for other threads.
    stride = BLOCK_P * (tl.cast(C_SRC, tl.int64) if CHANNELS_LAST else 1)
    mask1 = pixel_mask(p_last, pixel, end, inside, EVEN_P)
    mask2 = pixel_mask(p_last + BLOCK_P, pixel, end, inside, EVEN_P)
    ahead1, ahead2 = fetch_step(
        source, source2, source3, weights, half, at, offsets, stride, None, 0, 0, 0, mask1, mask2, inside, NUM_MIX
    )
    scale = tl.load(weight + c_cat + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + c_cat + channel, mask=inside, other=0.0).to(tl.float32)
    first_group = c_cat // GROUP_SIZE
    group_mean, group_rstd = _merge_groups(
        means, m2s, n, first_group, HW, C, splits, chunk, eps, GROUP_SIZE, GROUPS, MEMBERS, UNROLL
    )
    # From groups to channels. The result of a gather takes the layout of its index, so the layout of the merge does not
    # reach the loop below. Selecting with a comparison and a sum carried it there, and 8 warps did the same work.
    group = (c_cat + tl.arange(0, BLOCK_C)) // GROUP_SIZE - first_group
    C_AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    mean = tl.expand_dims(tl.gather(group_mean, group, 0), C_AXIS)
    scale *= tl.expand_dims(tl.gather(group_rstd, group, 0), C_AXIS)
    out_at = element_offset(n, c_cat, p_last, HW, C, CHANNELS_LAST)
    out_stride = BLOCK_P * (tl.cast(C, tl.int64) if CHANNELS_LAST else 1)
    normalize(
        source, source2, source3, weights, half, at, offsets, stride, None, 0, 0, 0, out, out_at, out_offsets,
        out_stride, ahead1, ahead2, pixel, inside, inside, mean, scale, shift, p_first, p_last, end, NUM_MIX, EVEN_P,
        BLOCK_P,
    )  # fmt: skip


@triton.jit
def normalize_silu_kernel(
    h,
    h2,
    h3,
    mix,
    skip,
    weight,
    bias,
    means,
    m2s,
    out,
    HW,
    C1,
    C2,
    chunk,
    eps,
    GROUP_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    UNROLL: tl.constexpr,
    NUM_MIX: tl.constexpr,
    HALVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Launch 2: merge the partials of launch 1 into groups, normalise, affine, SiLU. Grid: as launch 1, backwards.

    GROUP_SIZE: channels of a group. GROUPS: how many groups a block can touch (`groups_of_block`). MEMBERS, UNROLL: how
    many channels of a group, and chunks, are merged at once (`merge_tile`).
    """
    # Triton's launcher passes a Python float as float32, Inductor's as float64. The cast gives both the same bits.
    eps = tl.cast(eps, tl.float32)
    splits = tl.num_programs(2)
    n = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    split = splits - 1 - tl.program_id(2)
    p_first = split * chunk
    C = C1 + C2
    h_blocks = tl.cdiv(C1, BLOCK_C)
    if block < h_blocks:
        c = block * BLOCK_C
        _normalize_chunk(
            h, h2, h3, mix, weight, bias, means, m2s, out, n, c, c, p_first, HW, C1, C, splits, chunk, eps, GROUP_SIZE,
            GROUPS, MEMBERS, UNROLL, NUM_MIX, HALVES, CHANNELS_LAST, WIDE, EVEN_C, EVEN_P, BLOCK_C, BLOCK_P,
        )  # fmt: skip
    else:
        c = (block - h_blocks) * BLOCK_C
        _normalize_chunk(
            skip, None, None, None, weight, bias, means, m2s, out, n, c, C1 + c, p_first, HW, C2, C, splits, chunk, eps,
            GROUP_SIZE, GROUPS, MEMBERS, UNROLL, 0, False, CHANNELS_LAST, WIDE, EVEN_C, EVEN_P, BLOCK_C, BLOCK_P,
        )  # fmt: skip
