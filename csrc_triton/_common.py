"""What the ops share: checks of their inputs, the layout of a call, the mix of buffers, and facts about the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def require_triton() -> None:
    """Raise RuntimeError without Triton. It has no wheels for Windows and macOS; there the ops run their references."""
    if not HAS_TRITON:
        raise RuntimeError(
            "this kernel needs Triton, which is not installed here (`pip install triton`, Linux only); "
            "the op's reference, `<op>_reference`, computes the same without it"
        )


def cdiv(a: int, b: int) -> int:
    """Ceiling division. Unlike triton.cdiv it works without Triton, and keeps a SymInt symbolic."""
    return (a + b - 1) // b


def joint_format(*activations: Tensor) -> torch.memory_format:
    """The memory format in which a call runs, and of its output.

    channels_last if any of the [N, C, H, W] activations is channels_last and not also contiguous (a one-pixel or
    one-channel tensor is both), else contiguous. channels_last wins in a mixed call, because the convolution that reads
    the result would convert it otherwise. `.contiguous` copies the operands in the other layout.
    """
    for x in activations:
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def check_join(h: Tensor, skip: Tensor, h2: Tensor | None, h3: Tensor | None, mix: Tensor | None) -> None:
    """Raise ValueError, with the values, unless these are two inputs of a join that kernels and references accept."""
    if h.dim() != 4 or skip.dim() != 4:
        raise ValueError(f"h and skip must be [N, C, H, W], got {tuple(h.shape)} and {tuple(skip.shape)}")
    if (h.shape[0], h.shape[2], h.shape[3]) != (skip.shape[0], skip.shape[2], skip.shape[3]):
        raise ValueError(f"h {tuple(h.shape)} and skip {tuple(skip.shape)} must agree in N, H and W")
    if h.dtype != skip.dtype or h.device != skip.device:
        raise ValueError(f"h ({h.dtype}, {h.device}) and skip ({skip.dtype}, {skip.device}) must agree; cast one first")
    if h3 is not None and h2 is None:
        raise ValueError("h3 was given without h2")
    buffers = [b for b in (h, h2, h3) if b is not None]
    for b in buffers[1:]:
        if b.shape != h.shape or b.dtype != h.dtype or b.device != h.device:
            raise ValueError(f"every buffer must be like h, {tuple(h.shape)} {h.dtype}; got {tuple(b.shape)} {b.dtype}")
    if mix is None:
        if len(buffers) > 1:
            raise ValueError("h2 and h3 need mix, a float32 tensor with one weight for each buffer")
        return
    shapes = (len(buffers),), (2, len(buffers))
    if mix.dtype != torch.float32 or tuple(mix.shape) not in shapes or mix.device != h.device:
        raise ValueError(
            f"mix must be float32 of shape {shapes[0]} or {shapes[1]} on {h.device}, got {mix.dtype} "
            f"{tuple(mix.shape)} on {mix.device}"
        )
    if mix.dim() == 2 and h.shape[0] % 2 != 0:
        raise ValueError(f"mix {tuple(mix.shape)} has weights for two halves, but h has a batch of {h.shape[0]}")


def check_kernel_dtype(h: Tensor) -> None:
    """Raise ValueError for float64 and other dtypes: the kernels compute in float32."""
    if h.dtype not in KERNEL_DTYPES:
        raise ValueError(f"the kernel takes float32, float16 and bfloat16, got {h.dtype}")


def combine(h: Tensor, h2: Tensor | None, h3: Tensor | None, mix: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`h` in `dtype`, or mix[0] h + mix[1] h2 + mix[2] h3 computed in `dtype`.

    With mix [2, number of buffers], its second row weighs what the buffers hold for the other half of the batch.
    """
    if mix is None:
        return h.to(dtype)
    buffers = [b.to(dtype) for b in (h, h2, h3) if b is not None]
    if mix.dim() == 2:
        buffers += [b.roll(h.shape[0] // 2, 0) for b in buffers]
    return torch.stack([w * b for w, b in zip(mix.to(dtype).flatten(), buffers, strict=True)]).sum(0)


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """A context in which x's device is the current one, because Triton launches on the current device."""
    return torch.cuda.device_of(x) if torch.cuda.is_available() else nullcontext()


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a GPU has. For other devices (interpreter, meta) an H100's number."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def warp_size(device: torch.device) -> int:
    """Threads of a warp: 32, or 64 on AMD's data centre GPUs."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter on the CPU (TRITON_INTERPRET=1)."""
    import triton

    return bool(triton.knobs.runtime.interpret)
