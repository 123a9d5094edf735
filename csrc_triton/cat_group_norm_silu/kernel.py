"""concat -> GroupNorm -> SiLU over two tensors, without the concat: two Triton launches, or one for a small join.

With x = cat([h, skip], 1), C = C1 + C2 channels in G groups of S = C / G channels, and P = H * W pixels:

    mean[n, g] = sum over the group's S channels and P pixels of x / (S P)
    var[n, g]  = sum of (x - mean[n, g])^2 / (S P)
    z[n, c, p] = (x[n, c, p] - mean[n, c // S]) / sqrt(var[n, c // S] + eps) * weight[c] + bias[c]
    y[n, c, p] = z * sigmoid(z)

Shapes and dtypes: h [N, C1, H, W], skip [N, C2, H, W] and y [N, C, H, W] in one of float32, float16, bfloat16; weight
and bias [C], each in any of the three. `h` may be the combination mix[0] h + mix[1] h2 + mix[2] h3 of up to three
buffers (an extrapolated cached feature), which is formed in registers wherever h is read. With mix [2, buffers],
mix[1, k] weighs in addition what buffer k holds for the other half of the batch, image (n + N / 2) mod N.

Layouts: h, skip and y are all contiguous ([N, C, P] in memory) or all channels_last ([N, P, C]). A tile is BLOCK_P
pixels by BLOCK_C channels, with the memory's fastest axis last. So reads and writes are coalesced in both layouts, and
16 bytes wide where that axis is a multiple of 16 elements. A step of a loop is two tiles. While a program computes one
step, it loads the next into registers. The loops over pixels use no shared memory and no barrier, and mask only uneven
sizes.

Two launches (two_launches.py)
    `channel_statistics_kernel`, grid (N, blocks of channels, chunks of pixels): for each channel of a chunk, the mean
    and M2 = sum of (x - mean)^2 in float32, written to partials [N, chunks, C]. A block has channels of one input only.
    Partials are per channel, not per group, so a group may straddle the seam (640 + 320 channels in groups of 30).
    `normalize_silu_kernel`, same grid: each program merges the partials of the few groups that its channels belong to,
    then applies the affine and SiLU to its chunk. It goes backwards, in the grid and within a chunk, because L2 still
    has what launch 1 read last.

    Traffic of the activations: two reads and one write. Every program that needs a group merges it again. The partials
    are a few hundred KB, so they come from L2, and there are only as many chunks as fill the chip (launch.py). In
    bfloat16, for the joins of SD 1.5 and SDXL on an H100, merging adds 1 % (640+320 at 128 x 128) to 23 % (640+320 at
    32 x 32) to what launch 2 reads and writes in channels_last, and up to 15 % in contiguous. Writing and reading the
    partials adds 0.1 % to 2 % to the traffic of both launches, or 4 % at 8 x 8 in contiguous, if they reach DRAM at
    all. A third launch for the merge would cost more.

One launch (here)
    `cat_group_norm_silu_kernel`, grid (N, G): a program has a whole group and reads it twice, the second time from L1.
    There are no partials, no merge and no gap between launches, but only N G programs. That pays up to 16 x 16 pixels,
    and up to 32 x 32 where no group straddles the seam (`launch.one_launch`). Where one does, each lane is loaded from
    h or from skip. It exists for channels_last only, the layout in which pipelines are fastest.

Numerics: float32 from the load to the store. There is no E[x^2] - E[x]^2: all sums are of differences from a sample, so
a mean far from 0 costs no digits. A step brings two pixels to each lane of a tile. With d1 and d2 their distances from
mean, and count including them,

    mean += (d1 + d2) / count,    M2 += d1^2 + d2^2 - (d1 + d2)^2 / count

where mean starts as the lane's first pixel. The difference keeps at least half of d1^2 + d2^2: in the first step d1 is
0 and count is 2, and later (d1 + d2)^2 <= 2 (d1^2 + d2^2) and count >= 4. So the worst case, a first pixel that is the
lane's only outlier, at most doubles the relative error of a term. Lanes, chunks and channels are merged by their means
and the squared distances from the merged mean, which cannot cancel. Their means are summed as differences from one of
them, so a constant input is its own mean to the last bit.
There are no atomics: the result depends on the shapes and the number of multiprocessors, not on the order of programs.
Offsets of tiles are 64-bit; offsets within a tile are 64-bit only where they have to be (WIDE).

Sources: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", and
1983, "Algorithms for computing the sample variance: analysis and recommendations"; Wu and He 2018,
"Group normalization" (arXiv 1803.08494). stable-fast (src/sfast/triton/ops/group_norm.py) has a statistics and an apply
launch too, for one input, with one program per group and statistics in the input's dtype.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import fetch, fetch_step, lane_statistics, mix_weights, normalize, pixel_mask, to_other_half


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
    HALVES: tl.constexpr,
    EVEN_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The one launch of small joins, channels_last: statistics of a group, then its affine and SiLU. Grid: (N, groups).

    SEAM: some group has channels of both inputs, so the source is chosen for each lane; otherwise for each program.
    NUM_MIX, HALVES: as in `channel_statistics_kernel`.
    """
    eps = tl.cast(eps, tl.float32)
    n = tl.program_id(0).to(tl.int64)
    c_cat = tl.program_id(1) * GROUP_SIZE
    C = C1 + C2
    STEP: tl.constexpr = 2 * BLOCK_P
    lane = tl.arange(0, BLOCK_C)[None, :]
    pixel = tl.arange(0, BLOCK_P)[:, None]
    inside = lane < GROUP_SIZE
    w1, w2, w3, v1, v2, v3 = mix_weights(mix, NUM_MIX, HALVES)

    # The source of the group's first channel. Means of lanes are summed as differences from its first pixel.
    in_h = c_cat < C1
    source = tl.where(in_h, h, skip)
    weights = (tl.where(in_h, w1, 1.0), w2, w3, v1, v2, v3)
    half = to_other_half(n, HW, C1) if HALVES else None
    c_src = tl.where(in_h, C1, C2)
    at = n * HW * c_src + tl.where(in_h, c_cat, c_cat - C1)
    own = c_cat + lane * 0 < C1
    first = fetch(source, h2, h3, weights, half, at, None, 0, c_cat < C, in_h, NUM_MIX).to(tl.float32)
    if SEAM:
        source, other, c_src = h, skip, C1
        weights = (w1, w2, w3, v1, v2, v3)
        at = n * HW * C1 + c_cat
        other_at = n * HW * C2 + (c_cat - C1)
        other_offsets = pixel * C2 + lane
        other_stride = BLOCK_P * C2
        own = c_cat + lane < C1
    else:
        other, other_at, other_offsets, other_stride = None, 0, 0, 0
    offsets = pixel * c_src + lane
    stride = BLOCK_P * c_src
    lane_shift, m2, count = lane_statistics(
        source, h2, h3, weights, half, at, offsets, stride, other, other_at, other_offsets, other_stride, pixel,
        inside, own, first, 0, HW, NUM_MIX, EVEN_P, BLOCK_P,
    )  # fmt: skip
    # In flight while the threads wait for each other in the sums below.
    steps = (HW - 1) // STEP
    p_last = steps * STEP
    at += 2 * steps * stride
    other_at += 2 * steps * other_stride
    mask1 = pixel_mask(p_last, pixel, HW, inside, EVEN_P)
    mask2 = pixel_mask(p_last + BLOCK_P, pixel, HW, inside, EVEN_P)
    ahead1, ahead2 = fetch_step(
        source, h2, h3, weights, half, at, offsets, stride, other, other_at, other_offsets, other_stride, mask1,
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
    normalize(
        source, h2, h3, weights, half, at, offsets, stride, other, other_at, other_offsets, other_stride, out, out_at,
        pixel * C + lane, BLOCK_P * C, ahead1, ahead2, pixel, inside, own, first + group_shift, scale, shift, 0, p_last,
        HW, NUM_MIX, EVEN_P, BLOCK_P,
    )  # fmt: skip
