"""concat -> GroupNorm -> SiLU over two tensors, without the concat: two Triton launches, or one for a small join.

With x = cat([h, skip], 1), C = C1 + C2 channels in G groups of S = C / G channels, and P = H * W pixels:

    mean[n, g] = sum over the group's S channels and P pixels of x / (S P)
    var[n, g]  = sum of (x - mean[n, g])^2 / (S P)
    z[n, c, p] = (x[n, c, p] - mean[n, c // S]) / sqrt(var[n, c // S] + eps) * weight[c] + bias[c]
    y[n, c, p] = z * sigmoid(z)

Shapes and dtypes: h [N, C1, H, W], skip [N, C2, H, W] and y [N, C, H, W] in one of float32, float16, bfloat16; weight
and bias [C], each in any of the three. `h` may be the combination mix[0] h + mix[1] h2 + mix[2] h3 of up to three
buffers (an extrapolated cached feature): it is formed in registers wherever h is read.

Layouts: all of h, skip and y contiguous ([N, C, P] in memory), or all channels_last ([N, P, C]). A tile is
BLOCK_P pixels by BLOCK_C channels, with the memory's fastest axis last; so reads and writes are coalesced in both
layouts, and 16 bytes wide when that axis is a multiple of 16 elements. A step of a loop is two tiles. While a program
computes one step, the next one is on its way into registers. The loops over pixels use no shared memory and no barrier,
and mask only sizes that are uneven.

Two launches
    `channel_statistics_kernel`, grid (N, blocks of channels, chunks of pixels): per channel of the chunk the mean and
    M2 = sum of (x - mean)^2, float32, to partials [N, chunks, C]. A block has channels of one input only. Partials are
    per channel, not per group, so a group may straddle the seam (640 + 320 channels in groups of 30).
    `normalize_silu_kernel`, the same grid: each program merges the partials of the few groups that its channels are in,
    then applies the affine and SiLU to its chunk. It goes backwards, in the grid and within a chunk, because L2 still
    has what launch 1 read last.

    Traffic of the activations: two reads and one write. Every program that needs a group merges it anew. The partials
    are a few hundred KB, so they come from L2, and there are only as many chunks as fill the chip (launch.py). In
    bfloat16, for the joins of SD 1.5 and SDXL on an H100, merging adds 1 % (640+320 at 128 x 128) to 23 % (640+320 at
    32 x 32) to what launch 2 reads and writes in channels_last, and up to 15 % in contiguous. Writing and reading the
    partials adds 0.1 % to 2 % to the traffic of both launches, or 4 % at 8 x 8 in contiguous, if they reach DRAM at
    all. A third launch for the merge would cost more.

One launch
    `cat_group_norm_silu_kernel`, grid (N, G): one program has a whole group, and reads it twice, from L1 the second
    time. There is no partial, no merge and no gap between launches, but it has only N G programs. That pays up to
    16 x 16 pixels, and up to 32 x 32 where no group straddles the seam (`launch.one_launch`). Where one does, each lane
    is loaded from h or from skip. Only channels_last has it, the layout in which pipelines are fastest.

Numerics: float32 from the load to the store. No E[x^2] - E[x]^2: all sums are of differences from a sample, so a mean
far from 0 costs no digits. A step brings two pixels to each lane of a tile. With d1 and d2 their distances from mean,
and count including them,

    mean += (d1 + d2) / count,    M2 += d1^2 + d2^2 - (d1 + d2)^2 / count

where mean begins as the lane's first pixel. The difference keeps at least half of d1^2 + d2^2: in the first step d1 is
0 and count is 2, and later (d1 + d2)^2 <= 2 (d1^2 + d2^2) and count >= 4. So the worst case, a first pixel that is the
lane's only outlier, doubles the relative error of a term and no more. Lanes, chunks and channels are merged by their
means and the squares of the distances from the merged mean, which cannot cancel. Their means are added up as
differences from one of them, so a constant input is its own mean to the last bit.
No atomics: the result depends on the shapes and the number of multiprocessors, not on the order in which programs run.
The offset of a tile is 64-bit; offsets within a tile are where they must be (WIDE).

Sources: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", and
1983, "Algorithms for computing the sample variance: analysis and recommendations"; Wu and He 2018,
"Group normalization" (arXiv 1803.08494). stable-fast (src/sfast/triton/ops/group_norm.py) also has a statistics
and an apply launch, without the concat, with one program a group and with the statistics in the input's dtype.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(HW, C_SRC, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Channel and pixel indices of a tile, and its offsets in a source of C_SRC channels; the last axis is contiguous.

    channels_last: [BLOCK_P, BLOCK_C]; contiguous: [BLOCK_C, BLOCK_P]. The two indices are broadcastable to it.
    Where a tile begins is 64-bit in any case (`_base`). The offsets within it are so only if WIDE, which the launcher
    sets where they reach 2^31: elsewhere they would cost registers for nothing.
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
def _base(n, c, p, HW, C_SRC, CHANNELS_LAST: tl.constexpr):
    """Offset of element (n, c, p) of a tensor of C_SRC channels; n is 64-bit, and so is the result."""
    if CHANNELS_LAST:
        return (n * HW + p) * C_SRC + c
    else:
        return (n * C_SRC + c) * HW + p


@triton.jit
def _mix_weights(mix, NUM_MIX: tl.constexpr):
    """The NUM_MIX weights as scalars, loaded before the loop that needs them."""
    w1 = tl.load(mix) if NUM_MIX > 0 else 1.0
    w2 = tl.load(mix + 1) if NUM_MIX > 1 else 1.0
    w3 = tl.load(mix + 2) if NUM_MIX > 2 else 1.0
    return w1, w2, w3


@triton.jit
def _fetch(
    source,
    source2,
    source3,
    w1,
    w2,
    w3,
    offsets,
    other,
    other_offsets,
    mask,
    own,
    NUM_MIX: tl.constexpr,
):
    """Elements of a source: plain, in its dtype (NUM_MIX = 0), or combined from NUM_MIX buffers, in float32.

    Plain ones stay in the source's dtype, so a tile on its way in costs no more registers than it must. Elements that
    `mask` leaves out are undefined. `own`: the elements that source2 and source3 have. If `other`, the source beyond
    the seam, is not None, they are the elements that `source` has too, and the rest come from `other`.
    """
    own = mask & own
    x = tl.load(source + offsets, mask=mask if other is None else own)
    if NUM_MIX > 0:
        x = x.to(tl.float32) * w1
    if NUM_MIX > 1:
        x += w2 * tl.load(source2 + offsets, mask=own, other=0.0).to(tl.float32)
    if NUM_MIX > 2:
        x += w3 * tl.load(source3 + offsets, mask=own, other=0.0).to(tl.float32)
    if other is not None:
        # Two loads, one of which a lane skips. One load of pointers chosen lane by lane would be 2 bytes wide.
        y = tl.load(other + other_offsets, mask=mask & (own == 0))
        x = tl.where(own, x, y.to(x.dtype))
    return x


@triton.jit
def _mask(p, pixel, end, inside, EVEN: tl.constexpr):
    """Which elements of the tile at pixel p exist; the program's pixels stop before `end`.

    EVEN: every tile is full, so all of its elements exist or none. The product with 0 gives the comparison the tile's
    shape: Triton's interpreter turns a boolean scalar into an integer when it broadcasts it.
    """
    return (p + (pixel * 0 if EVEN else pixel) < end) & inside


@triton.jit
def _fetch_step(
    source,
    source2,
    source3,
    w1,
    w2,
    w3,
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
    """The two tiles of a step, the second one `stride` after the first.

    Two tiles, not one of three axes: Triton 3.6 would spread the axis of two over the threads of a warp.
    """
    tile1 = _fetch(
        source, source2, source3, w1, w2, w3, at + offsets, other, other_at + other_offsets, mask1, own, NUM_MIX
    )
    at += stride
    if other is not None:
        other_at += other_stride
    tile2 = _fetch(
        source, source2, source3, w1, w2, w3, at + offsets, other, other_at + other_offsets, mask2, own, NUM_MIX
    )
    return tile1, tile2


@triton.jit
def _lane_statistics(
    source,
    source2,
    source3,
    w1,
    w2,
    w3,
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
    """Of the pixels from p_first to `end`, for each lane of a tile: mean less `first`, M2, and how many it has."""
    STEP: tl.constexpr = 2 * BLOCK_P
    mask1 = _mask(p_first, pixel, end, inside, EVEN)
    mask2 = _mask(p_first + BLOCK_P, pixel, end, inside, EVEN)
    ahead1, ahead2 = _fetch_step(
        source, source2, source3, w1, w2, w3, at, offsets, stride, other, other_at, other_offsets, other_stride,
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
        mask1 = _mask(p + STEP, pixel, end, inside, EVEN)
        mask2 = _mask(p + STEP + BLOCK_P, pixel, end, inside, EVEN)
        ahead1, ahead2 = _fetch_step(
            source, source2, source3, w1, w2, w3, at, offsets, stride, other, other_at, other_offsets, other_stride,
            mask1, mask2, own, NUM_MIX,
        )  # fmt: skip
        total = delta1 + delta2
        shift = total * (1.0 / count)
        m2 += delta1 * delta1 + delta2 * delta2 - total * shift
        mean += shift
    if EVEN:
        shift = mean - first
    else:
        # A lane without pixels, counted as 1 until here, has no mean either.
        exists = p_first + pixel < end
        count = tl.where(exists, count, 0.0)
        shift = tl.where(exists, mean - first, 0.0)
        m2 = tl.where(exists, m2, 0.0)
    return shift, m2, count


@triton.jit
def _silu(z):
    """z * sigmoid(z), the reciprocal of 1 + exp(-z) as the square of its 1 / sqrt, to 4e-7 of the result.

    A division comes with range checks that a denominator of 1 or more does not need: with it the loop of launch 2 has
    226 instead of 193 instructions on sm_90, and 362 instead of 223 on gfx942.
    """
    r = tl.rsqrt(1.0 + tl.exp2(z * -1.4426950408889634))
    return z * r * r


@triton.jit
def _normalize(
    source,
    source2,
    source3,
    w1,
    w2,
    w3,
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
    """Affine and SiLU of the steps from p_last back to p_first; the tiles of the one at p_last are fetched already."""
    STEP: tl.constexpr = 2 * BLOCK_P
    for back in tl.range(0, p_last - p_first + STEP, STEP, num_stages=1):
        x1 = ahead1.to(tl.float32)
        x2 = ahead2.to(tl.float32)
        at -= 2 * stride
        if other is not None:
            other_at -= 2 * other_stride
        # Only the last step, the first one here, may be cut off.
        more = _mask(p_first + back, pixel, p_last, inside, True)
        ahead1, ahead2 = _fetch_step(
            source, source2, source3, w1, w2, w3, at, offsets, stride, other, other_at, other_offsets, other_stride,
            more, more, own, NUM_MIX,
        )  # fmt: skip
        # Not x * scale + (shift - mean * scale), which cancels when |mean| is far above the deviation.
        y1 = _silu((x1 - mean) * scale + shift)
        y2 = _silu((x2 - mean) * scale + shift)
        p = p_last - back
        mask1 = inside if EVEN else _mask(p, pixel, end, inside, EVEN)
        mask2 = inside if EVEN else _mask(p + BLOCK_P, pixel, end, inside, EVEN)
        tl.store(out + (out_at + out_offsets), y1.to(out.dtype.element_ty), mask=mask1)
        tl.store(out + (out_at + out_stride + out_offsets), y2.to(out.dtype.element_ty), mask=mask2)
        out_at -= 2 * out_stride


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
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Mean and M2 of channels c .. c + BLOCK_C of one source over `chunk` pixels from p_first, stored at `row`."""
    channel, pixel, offsets = _tile(HW, C_SRC, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    P_AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    inside = channel < (BLOCK_C if EVEN_C else C_SRC - c)
    w1, w2, w3 = _mix_weights(mix, NUM_MIX)
    at = _base(n, c, p_first, HW, C_SRC, CHANNELS_LAST)
    stride = BLOCK_P * (tl.cast(C_SRC, tl.int64) if CHANNELS_LAST else 1)
    end = tl.minimum(p_first + chunk, HW)
    # The channel's first pixel of the chunk: the means of its lanes are added up as differences from it.
    first_at = at + (channel if CHANNELS_LAST else (channel.to(tl.int64) if WIDE else channel) * HW)
    first = _fetch(source, source2, source3, w1, w2, w3, first_at, None, 0, inside, inside, NUM_MIX).to(tl.float32)
    shift, m2, count = _lane_statistics(
        source, source2, source3, w1, w2, w3, at, offsets, stride, None, 0, 0, 0, pixel, inside, inside, first,
        p_first, end, NUM_MIX, EVEN_P, BLOCK_P,
    )  # fmt: skip
    # All lanes of a channel at once: first the mean, then the squares of the distances from it.
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
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Launch 1: per-channel partials of both inputs. Grid: (N, blocks of channels, chunks of pixels).

    means, m2s: float32 [N, chunks, C1 + C2]. h2, h3 and mix are read only as far as NUM_MIX (0 to 3) says.
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
            NUM_MIX, CHANNELS_LAST, WIDE, EVEN_C, EVEN_P, BLOCK_C, BLOCK_P,
        )  # fmt: skip
    else:
        c = (block - h_blocks) * BLOCK_C
        _chunk_statistics(
            skip, None, None, None, means, m2s, n, c, C1 + c, p_first, row, HW, C2, chunk,
            0, CHANNELS_LAST, WIDE, EVEN_C, EVEN_P, BLOCK_C, BLOCK_P,
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

    First the chunks of each channel, in the channel's own lane, UNROLL of them loaded at once; then the channels of a
    group, MEMBERS at a time, which is all of them for the joins of real U-Nets. Both by mean first, then squares of the
    distances from it. All chunks have `chunk` pixels, but the last, which is therefore kept out of the sums.
    """
    group = (first_group + tl.arange(0, GROUPS))[:, None]
    rows = n * splits * C
    full = splits - 1
    last_row = rows + full * C
    last_count = tl.cast(HW - full * chunk, tl.float32)
    full_count = tl.cast(chunk, tl.float32)
    pixels = tl.cast(HW, tl.float32)
    # A mean of the group's first channel: the means of its channels are added up as differences from it.
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
                # The second time from L1.
                mask = inside & (member * 0 + (first_split + i) < full)
                delta = tl.load(means + row + channel, mask=mask, other=mean) - mean
                squares += delta * delta
                row += C
        m2 += squares * full_count + last_delta * last_delta * last_count
        # The channels, which all have the same count.
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
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Normalise channels c .. c + BLOCK_C of one source, over `chunk` pixels from p_first, into out from c_cat on."""
    channel, pixel, offsets = _tile(HW, C_SRC, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    _, _, out_offsets = _tile(HW, C, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    STEP: tl.constexpr = 2 * BLOCK_P
    inside = channel < (BLOCK_C if EVEN_C else C_SRC - c)
    w1, w2, w3 = _mix_weights(mix, NUM_MIX)
    end = tl.minimum(p_first + chunk, HW)
    p_last = p_first + (end - 1 - p_first) // STEP * STEP
    at = _base(n, c, p_last, HW, C_SRC, CHANNELS_LAST)
    # Under way during the merge, which waits for L2 and then for other threads.
    stride = BLOCK_P * (tl.cast(C_SRC, tl.int64) if CHANNELS_LAST else 1)
    mask1 = _mask(p_last, pixel, end, inside, EVEN_P)
    mask2 = _mask(p_last + BLOCK_P, pixel, end, inside, EVEN_P)
    ahead1, ahead2 = _fetch_step(
        source, source2, source3, w1, w2, w3, at, offsets, stride, None, 0, 0, 0, mask1, mask2, inside, NUM_MIX
    )
    scale = tl.load(weight + c_cat + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + c_cat + channel, mask=inside, other=0.0).to(tl.float32)
    first_group = c_cat // GROUP_SIZE
    group_mean, group_rstd = _merge_groups(
        means, m2s, n, first_group, HW, C, splits, chunk, eps, GROUP_SIZE, GROUPS, MEMBERS, UNROLL
    )
    # From groups to channels. A gather's result has the layout of its index, so the layout in which the partials were
    # merged stays out of the loop below; picked by a comparison and a sum, it spread there and made 8 warps work alike.
    group = (c_cat + tl.arange(0, BLOCK_C)) // GROUP_SIZE - first_group
    C_AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    mean = tl.expand_dims(tl.gather(group_mean, group, 0), C_AXIS)
    scale *= tl.expand_dims(tl.gather(group_rstd, group, 0), C_AXIS)
    out_at = _base(n, c_cat, p_last, HW, C, CHANNELS_LAST)
    out_stride = BLOCK_P * (tl.cast(C, tl.int64) if CHANNELS_LAST else 1)
    _normalize(
        source, source2, source3, w1, w2, w3, at, offsets, stride, None, 0, 0, 0, out, out_at, out_offsets, out_stride,
        ahead1, ahead2, pixel, inside, inside, mean, scale, shift, p_first, p_last, end, NUM_MIX, EVEN_P, BLOCK_P,
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
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Launch 2: merge the partials of launch 1 into groups, normalise, affine, SiLU. Grid: as launch 1, backwards.

    GROUP_SIZE: channels of a group. GROUPS: groups that a block can touch (`groups_of_block`). MEMBERS channels of each
    and UNROLL chunks are merged at once (`merge_tile`).
    """
    # A Python float is float32 to Triton's launcher and float64 to Inductor's; pinned, both give the same bits.
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
            GROUPS, MEMBERS, UNROLL, NUM_MIX, CHANNELS_LAST, WIDE, EVEN_C, EVEN_P, BLOCK_C, BLOCK_P,
        )  # fmt: skip
    else:
        c = (block - h_blocks) * BLOCK_C
        _normalize_chunk(
            skip, None, None, None, weight, bias, means, m2s, out, n, c, C1 + c, p_first, HW, C2, C, splits, chunk, eps,
            GROUP_SIZE, GROUPS, MEMBERS, UNROLL, 0, CHANNELS_LAST, WIDE, EVEN_C, EVEN_P, BLOCK_C, BLOCK_P,
        )  # fmt: skip


@triton.jit
def cat_group_norm_silu_kernel(
    h,
    h2,
    h3,
    mix,
    skip,
    weight,
    bias,
    out,
    HW,
    C1,
    C2,
    eps,
    GROUP_SIZE: tl.constexpr,
    SEAM: tl.constexpr,
    NUM_MIX: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The one launch of small joins, channels_last: statistics of a group, then its affine and SiLU. Grid: (N, groups).

    SEAM: some group has channels of both inputs, so the source is chosen for each lane; otherwise for each program.
    """
    eps = tl.cast(eps, tl.float32)
    n = tl.program_id(0).to(tl.int64)
    c_cat = tl.program_id(1) * GROUP_SIZE
    C = C1 + C2
    STEP: tl.constexpr = 2 * BLOCK_P
    lane = tl.arange(0, BLOCK_C)[None, :]
    pixel = tl.arange(0, BLOCK_P)[:, None]
    inside = lane < GROUP_SIZE
    w1, w2, w3 = _mix_weights(mix, NUM_MIX)

    # The source of the group's first channel. The means of lanes are added up as differences from its first pixel.
    in_h = c_cat < C1
    source = tl.where(in_h, h, skip)
    w1_here = tl.where(in_h, w1, 1.0)
    c_src = tl.where(in_h, C1, C2)
    at = n * HW * c_src + tl.where(in_h, c_cat, c_cat - C1)
    own = c_cat + lane * 0 < C1
    first = _fetch(source, h2, h3, w1_here, w2, w3, at, None, 0, c_cat < C, in_h, NUM_MIX).to(tl.float32)
    if SEAM:
        source, other, w1_here, c_src = h, skip, w1, C1
        at = n * HW * C1 + c_cat
        other_at = n * HW * C2 + (c_cat - C1)
        other_offsets = pixel * C2 + lane
        other_stride = BLOCK_P * C2
        own = c_cat + lane < C1
    else:
        other, other_at, other_offsets, other_stride = None, 0, 0, 0
    offsets = pixel * c_src + lane
    stride = BLOCK_P * c_src
    lane_shift, m2, count = _lane_statistics(
        source, h2, h3, w1_here, w2, w3, at, offsets, stride, other, other_at, other_offsets, other_stride, pixel,
        inside, own, first, 0, HW, NUM_MIX, EVEN_P, BLOCK_P,
    )  # fmt: skip
    # Under way while the threads wait for each other in the sums below.
    steps = (HW - 1) // STEP
    p_last = steps * STEP
    at += 2 * steps * stride
    other_at += 2 * steps * other_stride
    mask1 = _mask(p_last, pixel, HW, inside, EVEN_P)
    mask2 = _mask(p_last + BLOCK_P, pixel, HW, inside, EVEN_P)
    ahead1, ahead2 = _fetch_step(
        source, h2, h3, w1_here, w2, w3, at, offsets, stride, other, other_at, other_offsets, other_stride, mask1,
        mask2, own, NUM_MIX,
    )  # fmt: skip
    scale = tl.load(weight + c_cat + lane, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + c_cat + lane, mask=inside, other=0.0).to(tl.float32)

    share = 1.0 / (GROUP_SIZE * tl.cast(HW, tl.float32))
    group_shift = tl.sum(tl.where(inside, lane_shift * count, 0.0)) * share
    delta = lane_shift - group_shift
    var = tl.sum(tl.where(inside, m2 + delta * delta * count, 0.0)) * share
    scale *= tl.rsqrt(var + eps)
    out_at = (n * HW + p_last) * C + c_cat
    _normalize(
        source, h2, h3, w1_here, w2, w3, at, offsets, stride, other, other_at, other_offsets, other_stride, out, out_at,
        pixel * C + lane, BLOCK_P * C, ahead1, ahead2, pixel, inside, own, first + group_shift, scale, shift, 0, p_last,
        HW, NUM_MIX, EVEN_P, BLOCK_P,
    )  # fmt: skip
