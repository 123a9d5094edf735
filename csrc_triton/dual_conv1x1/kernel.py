"""The 1x1 convolution of a concat, without the concat: one GEMM over two inputs with one accumulator.

With x = cat([h, skip], 1), C = C1 + C2 channels, and W = weight[:, :, 0, 0]:

    y[n, o, p] = sum over c < C1 of W[o, c] h[n, c, p] + sum over c < C2 of W[o, C1 + c] skip[n, c, p]
                 + bias[o] + residual[n, o, p]

Shapes and dtypes: h [N, C1, H, W], skip [N, C2, H, W], weight [O, C, 1, 1] and y [N, O, H, W] in one of float32,
float16, bfloat16; bias [O] and residual [N, O, H, W] (both optional) in any of the three. `h` may be the combination
mix[0] h + mix[1] h2 + mix[2] h3 of up to three buffers: it is formed in registers, in float32, and rounded to h's dtype
for the tensor cores, as it would be if it were a tensor.

Layouts: all activations channels_last ([N, P, C] in memory; the batch is then one image of N * P pixels, so a tile may
span images), or all contiguous ([N, C, P]). The tile of activations is read along the memory's fastest axis in both.
The weight is [O, C] in memory in either format.

Grid: one program for each tile of BLOCK_P pixels by BLOCK_O output channels, output channels fastest, so that the
programs that read the same pixels run together and h and skip come from DRAM once. The reduction runs over h's
channels, then over skip's, in steps of one cache line of channels, into one float32 accumulator: two library GEMMs
would write and read a partial result of O channels instead. The residual is added before the only rounding.

Numerics: float32 accumulation, in the order of the tiles, without split-K or atomics, so deterministic for one
configuration. float32 inputs are multiplied in TF32 only where `torch.backends.cudnn.allow_tf32` allows it to the
convolution that this replaces. Offsets are 64-bit.

The configuration is chosen by Triton's autotuner, once per shape; all are for 8 or 4 warps, without hooks, as
`torch.library.wrap_triton` demands. Sources: the matrix multiplication of the Triton tutorials, of which this is the
two-input form.
"""

from __future__ import annotations

import triton
import triton.language as tl

# K steps are given in bytes: 128 of 16-bit or of 32-bit channels are a cache line of each row, and cost the same shared
# memory. The largest tile takes 96 KiB in three stages, just below the 99 KiB of sm_89.
CONFIGS = [
    triton.Config({"BLOCK_P": 128, "BLOCK_O": 128, "BLOCK_K_BYTES": 128}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_P": 128, "BLOCK_O": 64, "BLOCK_K_BYTES": 128}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_P": 64, "BLOCK_O": 128, "BLOCK_K_BYTES": 128}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_P": 64, "BLOCK_O": 64, "BLOCK_K_BYTES": 128}, num_warps=4, num_stages=4),
    triton.Config({"BLOCK_P": 32, "BLOCK_O": 64, "BLOCK_K_BYTES": 128}, num_warps=4, num_stages=4),
]


@triton.jit
def _accumulate(
    acc,
    source,
    source2,
    source3,
    mix,
    weight,
    n,
    p,
    o,
    c_cat,
    P,
    C_SRC,
    C,
    C_OUT,
    NUM_MIX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """acc [BLOCK_P, BLOCK_O] plus one source times its columns of the weight, those from c_cat on."""
    pixel = tl.arange(0, BLOCK_P)[:, None]
    out_channel = tl.arange(0, BLOCK_O)[None, :]
    k = tl.arange(0, BLOCK_K)
    w1 = tl.load(mix) if NUM_MIX > 0 else 1.0
    w2 = tl.load(mix + 1) if NUM_MIX > 1 else 1.0
    w3 = tl.load(mix + 2) if NUM_MIX > 2 else 1.0
    if CHANNELS_LAST:
        at = (n * P + p) * C_SRC
        step = BLOCK_K
        offsets = (pixel.to(tl.int64) if WIDE else pixel) * C_SRC + k[None, :]
    else:
        at = n * C_SRC * P + p
        step = tl.cast(P, tl.int64) * BLOCK_K
        offsets = (k.to(tl.int64) if WIDE else k)[None, :] * P + pixel
    weight_at = o.to(tl.int64) * C + c_cat
    weight_offsets = (out_channel.to(tl.int64) if WIDE else out_channel) * C + k[:, None]
    pixel_inside = p + pixel < P
    out_inside = o + out_channel < C_OUT
    for c in range(0, C_SRC, BLOCK_K):
        if EVEN_K:
            mask = pixel_inside
            weight_mask = out_inside
        else:
            mask = pixel_inside & (c + k < C_SRC)[None, :]
            weight_mask = out_inside & (c + k < C_SRC)[:, None]
        x = tl.load(source + at + offsets, mask=mask, other=0.0)
        if NUM_MIX > 0:
            mixed = w1 * x.to(tl.float32)
            if NUM_MIX > 1:
                mixed += w2 * tl.load(source2 + at + offsets, mask=mask, other=0.0).to(tl.float32)
            if NUM_MIX > 2:
                mixed += w3 * tl.load(source3 + at + offsets, mask=mask, other=0.0).to(tl.float32)
            x = mixed.to(source.dtype.element_ty)
        w = tl.load(weight + weight_at + weight_offsets, mask=weight_mask, other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        at += step
        weight_at += BLOCK_K
    return acc


@triton.autotune(configs=CONFIGS, key=["N", "P", "C1", "C2", "C_OUT", "NUM_MIX", "CHANNELS_LAST"])
@triton.jit
def dual_conv1x1_kernel(
    h,
    h2,
    h3,
    mix,
    skip,
    weight,
    bias,
    residual,
    out,
    N,
    P,
    C1,
    C2,
    C_OUT,
    NUM_MIX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K_BYTES: tl.constexpr,
):
    """Grid: N * cdiv(P, BLOCK_P) * cdiv(C_OUT, BLOCK_O). In channels_last N is 1 and P counts the pixels of all images.

    h2, h3 and mix are read only as far as NUM_MIX (0 to 3) says, bias and residual only if HAS_... is set.
    WIDE: offsets within a tile need 64 bits (where it begins is 64-bit in any case).
    EVEN_K: C1 and C2 are multiples of BLOCK_K. UPCAST: the interpreter's, which cannot multiply bfloat16.
    """
    # Several buffers are loaded for each step of h: half the step keeps them within the same shared memory.
    ELEMENT_BYTES: tl.constexpr = h.dtype.element_ty.primitive_bitwidth // 8
    BLOCK_K: tl.constexpr = BLOCK_K_BYTES // ELEMENT_BYTES // (2 if NUM_MIX > 1 else 1)
    pid = tl.program_id(0)
    o_blocks = tl.cdiv(C_OUT, BLOCK_O)
    p_blocks = tl.cdiv(P, BLOCK_P)
    o = (pid % o_blocks) * BLOCK_O
    p = (pid // o_blocks % p_blocks) * BLOCK_P
    n = (pid // (o_blocks * p_blocks)).to(tl.int64)
    C = C1 + C2
    acc = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    acc = _accumulate(
        acc, h, h2, h3, mix, weight, n, p, o, 0, P, C1, C, C_OUT,
        NUM_MIX, CHANNELS_LAST, WIDE, EVEN_K, PRECISION, UPCAST, BLOCK_P, BLOCK_O, BLOCK_K,
    )  # fmt: skip
    acc = _accumulate(
        acc, skip, skip, skip, mix, weight, n, p, o, C1, P, C2, C, C_OUT,
        0, CHANNELS_LAST, WIDE, EVEN_K, PRECISION, UPCAST, BLOCK_P, BLOCK_O, BLOCK_K,
    )  # fmt: skip

    pixel = tl.arange(0, BLOCK_P)[:, None]
    out_channel = tl.arange(0, BLOCK_O)[None, :]
    mask = (p + pixel < P) & (o + out_channel < C_OUT)
    if CHANNELS_LAST:
        at = (n * P + p) * C_OUT + o + (pixel.to(tl.int64) if WIDE else pixel) * C_OUT + out_channel
    else:
        at = (n * C_OUT + o) * P + p + (out_channel.to(tl.int64) if WIDE else out_channel) * P + pixel
    if HAS_BIAS:
        acc += tl.load(bias + o + out_channel, mask=o + out_channel < C_OUT, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)
