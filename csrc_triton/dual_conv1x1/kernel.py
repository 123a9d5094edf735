"""The 1x1 convolution of a concat, without the concat: one GEMM over two inputs with one accumulator.

With x = cat([h, skip], 1), C = C1 + C2 channels, and W = weight[:, :, 0, 0]:

    y[n, o, p] = bias[o] + sum over c < C1 of W[o, c] h[n, c, p] + sum over c < C2 of W[o, C1 + c] skip[n, c, p]
                 + residual[n, o, p] + residual_bias[o]

Shapes and dtypes: h [N, C1, H, W], skip [N, C2, H, W], weight [O, C, 1, 1] and y [N, O, H, W] in one of float32,
float16, bfloat16; bias [O], residual [N, O, H, W] and residual_bias [O] (all optional) in any of the three. `h` may be
the combination mix[0] h + mix[1] h2 + mix[2] h3 of up to three buffers, which is formed in registers in float32 and
rounded to h's dtype for the tensor cores, like a tensor would be. With mix [2, buffers], mix[1, k] weighs in addition
what buffer k holds for the other half of the batch, image (n + N / 2) mod N.

Layouts: all activations are channels_last ([N, P, C] in memory; the batch is then one image of N * P pixels, so a tile
may span images) or all contiguous ([N, C, P]). Tiles of activations are read along the memory's fastest axis in both.
The weight is [O, C] in memory in either format.

Grid: one program for each tile of BLOCK_P pixels by BLOCK_O output channels, output channels fastest, so that programs
that read the same pixels run together, and h and skip come from DRAM once. `launch.py` chooses the tile.

If the halves of the batch take from each other, a tile has BLOCK_P / 2 pixels of each half, the same ones, and an
accumulator for each. So a program loads both images that a buffer is summed from anyway, and no buffer is read twice.

The reduction is one loop over h's channels and then skip's, in steps of one cache line of channels, into one float32
accumulator. Two library GEMMs would write and read a partial result of O channels instead. A scalar selects the source
of each step. Two loops would keep the addresses of both sources in registers, and fill the pipeline of loads twice. A
step does not cross the seam: if C1 is not a multiple of BLOCK_K, the last step of h is partial.

The accumulator starts with the biases. Added at the end, their elements would need registers besides the accumulator's.
The residual is added before the only rounding, to the output's dtype.

Numerics: float32 accumulation in the order of the channels, without split-K or atomics, so deterministic for each tile.
float32 inputs are multiplied in TF32 only if torch allows it for the convolution that this replaces. They are then
rounded to nearest, as cuDNN does. The tensor cores alone would truncate them, which at least doubles the error. Offsets
are 64-bit.

Sources: the matrix multiplication of the Triton tutorials, of which this is the two-input form.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rounded_to_tf32(x):
    """float32 rounded to the nearest TF32 number, ties away from zero. PTX ISA, "cvt"; from sm_80 on."""
    return tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _mixed(x, x2, x3, mix, NUM_MIX: tl.constexpr):
    """The sum of NUM_MIX tiles, weighed with the first numbers of `mix`, in float32."""
    mixed = tl.load(mix) * x.to(tl.float32)
    if NUM_MIX > 1:
        mixed += tl.load(mix + 1) * x2.to(tl.float32)
    if NUM_MIX > 2:
        mixed += tl.load(mix + 2) * x3.to(tl.float32)
    return mixed


@triton.jit
def _multiplied(x, w, acc, ROUND: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """acc + x w."""
    if ROUND:
        x = _rounded_to_tf32(x)
        w = _rounded_to_tf32(w)
    if UPCAST:
        x = x.to(tl.float32)
        w = w.to(tl.float32)
    return tl.dot(x, w, acc, input_precision=PRECISION)


@triton.jit
def _store_sum(acc, residual, out, at, mask):
    """Store the accumulator, to which the residual is added."""
    if residual is not None:
        acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)


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
    residual_bias,
    out,
    P,
    C1,
    C2,
    C_OUT,
    NUM_MIX: tl.constexpr,
    HALVES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: images * cdiv(P, BLOCK_P) * cdiv(C_OUT, BLOCK_O). In channels_last there is one image of P pixels.

    HALVES: mix is [2, NUM_MIX]. Then images and P are those of one half of the batch, and the grid has BLOCK_P / 2.
    NUM_MIX (0 to 3): how many buffers are mixed. Of h2, h3, mix, bias, residual and residual_bias, missing ones are
    None. WIDE: offsets within a tile need 64 bits (a tile's start always has them). EVEN_K: C1 and C2 are multiples of
    BLOCK_K. ROUND: round to TF32 before multiplying (NVIDIA only). UPCAST: for the interpreter, which cannot multiply
    bfloat16.
    """
    pid = tl.program_id(0)
    o_blocks = tl.cdiv(C_OUT, BLOCK_O)
    o = (pid % o_blocks) * BLOCK_O
    ROWS: tl.constexpr = BLOCK_P // 2 if HALVES else BLOCK_P
    if CHANNELS_LAST:
        p = (pid // o_blocks) * ROWS
    else:
        p_blocks = tl.cdiv(P, ROWS)
        n = (pid // (o_blocks * p_blocks)).to(tl.int64)
        p = (pid // o_blocks % p_blocks) * ROWS
    if HALVES:
        # How many pixels the second half of the batch is behind the first.
        half = tl.cast(P, tl.int64) * (1 if CHANNELS_LAST else tl.num_programs(0) // (o_blocks * p_blocks))
    pixel = tl.arange(0, ROWS)[:, None]
    out_channel = tl.arange(0, BLOCK_O)[None, :]
    k = tl.arange(0, BLOCK_K)
    pixel_inside = p + pixel < P
    out_inside = o + out_channel < C_OUT
    wide_pixel = pixel.to(tl.int64) if WIDE else pixel
    wide_out = out_channel.to(tl.int64) if WIDE else out_channel
    wide_k = k.to(tl.int64) if WIDE else k
    C = C1 + C2
    weight_rows = weight + o.to(tl.int64) * C + (wide_out * C + k[:, None])

    if bias is not None:
        biases = tl.load(bias + o + out_channel, mask=out_inside, other=0.0).to(tl.float32)
    else:
        biases = tl.zeros((1, BLOCK_O), tl.float32)
    if residual_bias is not None:
        biases += tl.load(residual_bias + o + out_channel, mask=out_inside, other=0.0).to(tl.float32)
        # The maximum of one row is that row. It keeps the addition out of the accumulator's layout, in which a thread
        # would hold its share of both. ptxas needs 126 registers this way, and 142 otherwise (128 x 128, sm_90).
        biases = tl.max(biases, 0, keep_dims=True)
    acc = tl.broadcast_to(biases, (ROWS, BLOCK_O))
    if HALVES:
        other_acc = acc
    steps_of_h = tl.cdiv(C1, BLOCK_K)
    for step in range(0, steps_of_h + tl.cdiv(C2, BLOCK_K)):
        of_h = step < steps_of_h
        source = tl.where(of_h, h, skip)
        channels = tl.where(of_h, C1, C2)
        c = tl.where(of_h, step, step - steps_of_h) * BLOCK_K
        if CHANNELS_LAST:
            offsets = p.to(tl.int64) * channels + c + (wide_pixel * channels + k[None, :])
        else:
            offsets = (n * channels + c) * P + p + (wide_k[None, :] * P + pixel)
        if EVEN_K:
            mask = pixel_inside
            weight_mask = out_inside
        else:
            mask = pixel_inside & (c + k < channels)[None, :]
            weight_mask = out_inside & (c + k < channels)[:, None]
        x = tl.load(source + offsets, mask=mask, other=0.0)
        if NUM_MIX > 0:
            # The loads stay outside the branch, where the compiler can start them ahead of their step.
            only_h = mask & (k < tl.where(of_h, BLOCK_K, 0))[None, :]
            x2 = tl.load(h2 + offsets, mask=only_h, other=0.0) if NUM_MIX > 1 else x
            x3 = tl.load(h3 + offsets, mask=only_h, other=0.0) if NUM_MIX > 2 else x
            if HALVES:
                y = tl.load(source + half * channels + offsets, mask=mask, other=0.0)
                y2 = tl.load(h2 + half * C1 + offsets, mask=only_h, other=0.0) if NUM_MIX > 1 else y
                y3 = tl.load(h3 + half * C1 + offsets, mask=only_h, other=0.0) if NUM_MIX > 2 else y
            if of_h:
                mixed = _mixed(x, x2, x3, mix, NUM_MIX)
                if HALVES:
                    mixed += _mixed(y, y2, y3, mix + NUM_MIX, NUM_MIX)
                    other_mixed = _mixed(y, y2, y3, mix, NUM_MIX) + _mixed(x, x2, x3, mix + NUM_MIX, NUM_MIX)
                    y = other_mixed.to(h.dtype.element_ty)
                x = mixed.to(h.dtype.element_ty)
        w = tl.load(weight_rows + tl.where(of_h, c, C1 + c), mask=weight_mask, other=0.0)
        acc = _multiplied(x, w, acc, ROUND, UPCAST, PRECISION)
        if HALVES:
            other_acc = _multiplied(y, w, other_acc, ROUND, UPCAST, PRECISION)

    mask = pixel_inside & out_inside
    if CHANNELS_LAST:
        at = p.to(tl.int64) * C_OUT + o + (wide_pixel * C_OUT + out_channel)
    else:
        at = (n * C_OUT + o) * P + p + (wide_out * P + pixel)
    _store_sum(acc, residual, out, at, mask)
    if HALVES:
        _store_sum(other_acc, residual, out, at + half * C_OUT, mask)
