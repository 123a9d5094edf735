"""concat -> GroupNorm -> SiLU over two tensors, without the concat: two Triton kernels.

With x = cat([h, skip], 1), C = C1 + C2 channels in G groups of S = C / G channels, and P = H * W pixels:

    mean[n, g] = sum over the group's S channels and P pixels of x / (S P)
    var[n, g]  = sum of (x - mean[n, g])^2 / (S P)
    z[n, c, p] = (x[n, c, p] - mean[n, c // S]) / sqrt(var[n, c // S] + eps) * weight[c] + bias[c]
    y[n, c, p] = z * sigmoid(z)

Shapes and dtypes: h [N, C1, H, W], skip [N, C2, H, W] and y [N, C, H, W] in one of float32, float16, bfloat16; weight
and bias [C], each in any of the three. `h` may be the combination mix[0] h + mix[1] h2 + mix[2] h3 of up to three
buffers (an extrapolated cached feature): it is formed in registers wherever h is read.

Layouts: all of h, skip and y contiguous ([N, C, P] in memory), or all channels_last ([N, P, C]). A program's tile is
BLOCK_C channels by BLOCK_P pixels of one input, never of both, with the memory's fastest axis last; so reads and
writes are coalesced in both layouts, and 16 bytes wide when that axis is a multiple of 16 elements.

Launch 1, `channel_statistics_kernel`, one program for each (n, chunk of pixels, block of channels): per channel of
the chunk the mean and M2 = sum of (x - mean)^2, float32, to partials [N, splits, C]. Reduced per channel and not per
group, so a group may straddle the seam (640 + 320 channels in groups of 30) and a block need not know the groups.

Launch 2, `normalize_silu_kernel`, the same grid walked backwards, so that what launch 1 read last, and L2 still holds,
is read first: each program merges the partials of the few groups its channels are in, then streams its chunk through
the affine and SiLU. Traffic of the activations: two reads and one write.

A group's merge is repeated by each program that needs it; the partials are a few hundred KB, so it comes from L2. To
keep it small there are only as many chunks as fill the chip (launch.py). Counted for the joins of SD 1.5 and
SDXL in bfloat16 (tests/kernels/test_cat_group_norm_silu.py): the merge adds 2 % (640+320 at 128 x 128) to 23 % (640+320
at 32 x 32) to what launch 2 reads and writes, 0.4 % to 8 % in contiguous, and the partials add 0.1 % (128 x 128) to 4 %
(8 x 8) to the traffic of both launches, if they went to DRAM at all. A third launch for the merge would cost more.

Numerics: float32 from the load to the store. Each lane of a tile runs Welford's update; lanes, chunks and channels are
merged by the count-weighted formula of Chan et al., so there is no E[x^2] - E[x]^2 and no cancellation for a mean far
from 0. No atomics: the result depends on the shapes alone, not on the order in which programs run. Offsets are 64-bit.

Sources: Welford 1962, "Note on a method for calculating corrected sums of squares and products"; Chan, Golub and
LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances"; Wu and He 2018, "Group
normalization" (arXiv 1803.08494). stable-fast (src/sfast/triton/ops/group_norm.py) also has a statistics and an
apply launch, without the concat, with one program a group and with the statistics stored in the input's dtype.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(HW, C_SRC, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Channel and pixel indices of a tile, and its offsets in a source of C_SRC channels; the last axis is contiguous.

    channels_last: [BLOCK_P, BLOCK_C]; contiguous: [BLOCK_C, BLOCK_P]. The two indices are broadcastable to it.
    Where a tile begins is 64-bit in any case (`_base`). The offsets within it are so only if WIDE, which the launcher
    sets where they reach 2^31 (rows of 2^25 elements or more): elsewhere they would cost registers for nothing.
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
def _load(source, source2, source3, w1, w2, w3, offsets, mask, NUM_MIX: tl.constexpr):
    """One tile of a source in float32: plain (NUM_MIX = 0), or combined from NUM_MIX buffers.

    Cast right after the load: it is needed for the arithmetic, and the interpreter computes bfloat16 on its raw bits.
    """
    x = tl.load(source + offsets, mask=mask, other=0.0).to(tl.float32)
    if NUM_MIX > 0:
        x *= w1
    if NUM_MIX > 1:
        x += w2 * tl.load(source2 + offsets, mask=mask, other=0.0).to(tl.float32)
    if NUM_MIX > 2:
        x += w3 * tl.load(source3 + offsets, mask=mask, other=0.0).to(tl.float32)
    return x


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
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Mean and M2 of channels c .. c + BLOCK_C of one source over `chunk` pixels from p_first, stored at `row`."""
    channel, pixel, offsets = _tile(HW, C_SRC, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    P_AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    inside = c + channel < C_SRC
    w1, w2, w3 = _mix_weights(mix, NUM_MIX)
    # Welford in every lane, so the loop holds no exchange between threads. A lane's count depends on its pixel alone.
    count = tl.zeros(pixel.shape, tl.float32)
    mean = tl.zeros(offsets.shape, tl.float32)
    m2 = tl.zeros(offsets.shape, tl.float32)
    for p in tl.range(p_first, tl.minimum(p_first + chunk, HW), BLOCK_P, num_stages=STAGES):
        valid = p + pixel < HW
        start = _base(n, c, p, HW, C_SRC, CHANNELS_LAST)
        x = _load(source + start, source2 + start, source3 + start, w1, w2, w3, offsets, valid & inside, NUM_MIX)
        count += valid.to(tl.float32)
        delta = tl.where(valid, x - mean, 0.0)
        mean += delta * (1.0 / tl.maximum(count, 1.0))
        m2 += delta * (x - mean)
    # Chan's merge of all lanes of a channel at once; a chunk holds a pixel at least, so the total is never 0.
    total = tl.sum(count)
    channel_mean = tl.sum(mean * count, P_AXIS, keep_dims=True) / total
    delta = mean - channel_mean
    channel_m2 = tl.sum(m2 + delta * delta * count, P_AXIS, keep_dims=True)
    tl.store(means + row + c_cat + channel, channel_mean, mask=inside)
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
    blocks,
    splits,
    chunk,
    NUM_MIX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Launch 1: per-channel partials of both inputs. Grid: N * splits * blocks programs, channels fastest.

    means, m2s: float32 [N, splits, C1 + C2]. h2, h3 and mix are read only as far as NUM_MIX (0 to 3) says.
    """
    pid = tl.program_id(0)
    block = pid % blocks
    split = (pid // blocks) % splits
    n = (pid // (blocks * splits)).to(tl.int64)
    p_first = split * chunk
    row = (n * splits + split) * (C1 + C2)
    h_blocks = tl.cdiv(C1, BLOCK_C)
    if block < h_blocks:
        c = block * BLOCK_C
        _chunk_statistics(
            h, h2, h3, mix, means, m2s, n, c, c, p_first, row, HW, C1, chunk,
            NUM_MIX, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P, STAGES,
        )  # fmt: skip
    else:
        c = (block - h_blocks) * BLOCK_C
        _chunk_statistics(
            skip, skip, skip, mix, means, m2s, n, c, C1 + c, p_first, row, HW, C2, chunk,
            0, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P, STAGES,
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
    MERGE_LANES: tl.constexpr,
):
    """Mean and 1 / sqrt(var + eps) of GROUPS groups from first_group on, each [GROUPS]; lanes past the last are unused.

    A group's partials are splits * GROUP_SIZE (mean, M2) pairs. They are merged MERGE_LANES / GROUPS at a time, which
    is all of them for most joins, by the count-weighted formula, in which only the last chunk's count differs.
    """
    MEMBERS: tl.constexpr = MERGE_LANES // GROUPS
    group = (first_group + tl.arange(0, GROUPS))[:, None]
    count = tl.zeros((GROUPS,), tl.float32)
    mean = tl.zeros((GROUPS,), tl.float32)
    m2 = tl.zeros((GROUPS,), tl.float32)
    for first in range(0, splits * GROUP_SIZE, MEMBERS):
        member = (first + tl.arange(0, MEMBERS))[None, :]
        split = member // GROUP_SIZE
        channel = group * GROUP_SIZE + member % GROUP_SIZE
        inside = (split < splits) & (channel < C)
        at = (n * splits + split) * C + channel
        part_means = tl.load(means + at, mask=inside, other=0.0)
        part_m2s = tl.load(m2s + at, mask=inside, other=0.0)
        part_counts = tl.where(inside, tl.minimum(chunk, HW - split * chunk), 0).to(tl.float32)

        part_count = tl.sum(part_counts, 1)
        part_mean = tl.sum(part_means * part_counts, 1) / tl.maximum(part_count, 1.0)
        delta = part_means - part_mean[:, None]
        part_m2 = tl.sum(part_m2s + delta * delta * part_counts, 1)

        merged = count + part_count
        shift = part_mean - mean
        share = part_count / tl.maximum(merged, 1.0)
        mean += shift * share
        m2 += part_m2 + shift * shift * count * share
        count = merged
    return mean, tl.rsqrt(m2 / tl.maximum(count, 1.0) + eps)


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
    MERGE_LANES: tl.constexpr,
    NUM_MIX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Normalise channels c .. c + BLOCK_C of one source, over `chunk` pixels from p_first, into out from c_cat on."""
    channel, pixel, offsets = _tile(HW, C_SRC, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    _, _, out_offsets = _tile(HW, C, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P)
    inside = c + channel < C_SRC
    first_group = c_cat // GROUP_SIZE
    group_mean, group_rstd = _merge_groups(
        means, m2s, n, first_group, HW, C, splits, chunk, eps, GROUP_SIZE, GROUPS, MERGE_LANES
    )
    # From groups to channels. A gather's result has the layout of its index, so the layout in which the partials were
    # merged stays out of the loop below; picked by a comparison and a sum, it spread there and made 8 warps work alike.
    lane = tl.arange(0, BLOCK_C)
    group = (c_cat + lane) // GROUP_SIZE - first_group
    C_AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    mean = tl.expand_dims(tl.gather(group_mean, group, 0), C_AXIS)
    rstd = tl.expand_dims(tl.gather(group_rstd, group, 0), C_AXIS)
    scale = rstd * tl.load(weight + c_cat + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + c_cat + channel, mask=inside, other=0.0).to(tl.float32)
    w1, w2, w3 = _mix_weights(mix, NUM_MIX)

    for p in tl.range(p_first, tl.minimum(p_first + chunk, HW), BLOCK_P, num_stages=STAGES):
        mask = (p + pixel < HW) & inside
        start = _base(n, c, p, HW, C_SRC, CHANNELS_LAST)
        x = _load(source + start, source2 + start, source3 + start, w1, w2, w3, offsets, mask, NUM_MIX)
        # Not x * scale + (shift - mean * scale), which cancels when |mean| is far above the deviation.
        z = (x - mean) * scale + shift
        y = z * tl.sigmoid(z)
        tl.store(out + _base(n, c_cat, p, HW, C, CHANNELS_LAST) + out_offsets, y.to(out.dtype.element_ty), mask=mask)


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
    blocks,
    splits,
    chunk,
    eps,
    GROUP_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    MERGE_LANES: tl.constexpr,
    NUM_MIX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Launch 2: merge the partials of launch 1 into groups, normalise, affine, SiLU. Grid: as launch 1, backwards.

    GROUP_SIZE: channels of a group; GROUPS: groups a block can touch (`groups_of_block`).
    """
    # A Python float is float32 to Triton's launcher and float64 to Inductor's; pinned, both give the same bits.
    eps = tl.cast(eps, tl.float32)
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    block = pid % blocks
    split = (pid // blocks) % splits
    n = (pid // (blocks * splits)).to(tl.int64)
    p_first = split * chunk
    C = C1 + C2
    h_blocks = tl.cdiv(C1, BLOCK_C)
    if block < h_blocks:
        c = block * BLOCK_C
        _normalize_chunk(
            h, h2, h3, mix, weight, bias, means, m2s, out, n, c, c, p_first, HW, C1, C, splits, chunk, eps,
            GROUP_SIZE, GROUPS, MERGE_LANES, NUM_MIX, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P, STAGES,
        )  # fmt: skip
    else:
        c = (block - h_blocks) * BLOCK_C
        _normalize_chunk(
            skip, skip, skip, mix, weight, bias, means, m2s, out, n, c, C1 + c, p_first, HW, C2, C, splits, chunk, eps,
            GROUP_SIZE, GROUPS, MERGE_LANES, 0, CHANNELS_LAST, WIDE, BLOCK_C, BLOCK_P, STAGES,
        )  # fmt: skip
