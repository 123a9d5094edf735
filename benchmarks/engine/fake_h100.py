"""A simulated H100: inside `fake_h100()`, torch compiles for one on a machine without a GPU.

While Inductor generates code, it only asks a GPU for its properties. Tensors "on" it are fake: they have a shape,
strides, a dtype and a storage, but no memory. The generated code can be called on fake tensors too
(`gpu_code_trace.py`); nothing is computed and nothing is timed.

The patches are of private parts of torch 2.13 and Triton 3.9, and process-wide. All are undone at the end, but torch
caches some answers ("is there a GPU?") for good, so use a separate process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.compile_fx as compile_fx
import torch._inductor.config as inductor_config
import torch.nn.functional as F
import triton
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.fx_passes import joint_graph, pad_mm
from torch._prims_common import suggest_memory_format
from triton.backends.compiler import GPUTarget

PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    warp_size=32,
    total_memory=80 << 30,
    gcnArchName="",
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    clock_rate=1980000,
    memory_clock_rate=2619000,
    memory_bus_width=5120,
)
"""What `torch.cuda.get_device_properties` returns for an H100 SXM with 80 GB."""

Product = tuple[tuple[int, ...], tuple[int, ...]]
"""Shapes (m, k) and (k, n) of a matrix product's operands."""

_CUDA, _META, _DEVICE_TYPES = 1, 14, 21  # c10::DeviceType: two values, and how many there are


class _Driver:
    """The part of Triton's driver that torch and Triton use when kernels are defined."""

    utils = SimpleNamespace(
        get_device_properties=lambda device: {
            "max_shared_mem": PROPERTIES.shared_memory_per_block_optin,
            "multiprocessor_count": PROPERTIES.multi_processor_count,
            "warpSize": PROPERTIES.warp_size,
        }
    )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@contextmanager
def fake_h100() -> Iterator[set[Product]]:
    """Inside, `torch.compile` on fake CUDA tensors takes Inductor's path for an H100.

    Yields the set of matrix products that Inductor would have timed on the device while compiling, with and without
    padding to multiples of 8. Here they stay unpadded.
    """
    # Inductor traces its patterns once per process, through autograd, which has no CUDA kernels here.
    joint_graph.lazy_init()
    to_pad: set[Product] = set()

    def should_pad(match: Any, a: Tensor, b: Tensor, op: Any, input: Tensor | None = None) -> bool:
        if not inductor_config.deterministic:  # otherwise it decides without timing
            to_pad.add((tuple(a.shape), tuple(b.shape)))
        return False

    with ExitStack() as stack:

        def patch(target: Any, **replaced: Any) -> None:
            for name, value in replaced.items():
                stack.enter_context(mock.patch.object(target, name, value, create=not hasattr(target, name)))

        stack.enter_context(_device_guard())
        stack.enter_context(_triton_driver())
        patch(torch.version, cuda="12.8")
        patch(
            torch.cuda,
            is_available=_always(True),
            device_count=_always(1),
            current_device=_always(0),
            get_device_properties=_always(PROPERTIES),
            _get_device_properties=_always(PROPERTIES),
            get_device_capability=_always((9, 0)),
            is_bf16_supported=_always(True),
            synchronize=_always(None),
            set_device=_always(None),
            get_rng_state=lambda device=None: torch.zeros(16, dtype=torch.uint8, device="cpu"),
            set_rng_state=_always(None),
            _exchange_device=_always(0),
            _maybe_exchange_device=_always(0),
            _lazy_init=_always(None),
        )
        patch(
            CudaInterface,
            is_available=staticmethod(_always(True)),
            device_count=staticmethod(_always(1)),
            current_device=staticmethod(_always(0)),
            get_compute_capability=staticmethod(_always(90)),
            is_triton_capable=staticmethod(_always(True)),
            raise_if_triton_unavailable=staticmethod(_always(None)),
        )
        patch(
            CudaInterface.Worker,
            current_device=staticmethod(_always(0)),
            get_device_properties=staticmethod(_always(PROPERTIES)),
        )
        patch(torch._subclasses.fake_tensor, init_gpu_context=_always(None))
        # Only here does a build with cuDNN or FlashAttention take another branch than one without.
        patch(torch._C, _conv_determine_backend_memory_format=_cudnn_memory_format)
        patch(F, scaled_dot_product_attention=_flash_attention(F.scaled_dot_product_attention))
        patch(joint_graph, lazy_init=_always(None))
        patch(pad_mm, _should_pad=should_pad)
        # Fake tensors have no address, so alignment cannot be checked.
        patch(compile_fx, get_input_idxs_to_check=lambda *args: [])
        patch(
            torch._C,
            _cuda_getCurrentRawStream=_always(0),
        )
        patch(torch._C._dynamo.guards, _empty_strided_cuda=_empty_strided, _reinterpret_tensor=_reinterpret)
        stack.enter_context(inductor_config.patch(compile_threads=1, force_disable_caches=True, size_asserts=False))
        yield to_pad


def _always(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


@contextmanager
def _device_guard() -> Iterator[None]:
    """Inside, torch's C++ code can make "cuda" the current device.

    Some functions (indexing, .contiguous()) do so before they reach the fake tensor. A build without CUDA has no guard
    for it and raises. The meta device's guard does nothing, so it can stand in.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * _DEVICE_TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


@contextmanager
def _triton_driver() -> Iterator[None]:
    drivers = triton.runtime.driver
    before = drivers._active
    drivers.set_active(_Driver())
    try:
        yield
    finally:
        drivers._active = before


def _cudnn_memory_format(input: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """The layout of a convolution's output, as ATen's `cudnn_conv_suggest_memory_format`; NCHW without cuDNN."""
    formats = (suggest_memory_format(input), suggest_memory_format(weight))
    return torch.channels_last if torch.channels_last in formats else torch.contiguous_format


def _flash_attention(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What `scaled_dot_product_attention` becomes on a GPU. A build without CUDA traces plain matrix products."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if attn_mask is not None or enable_gqa or query.dtype == torch.float32:
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        output: Tensor = flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return output

    return attention


def _empty_strided(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


def _reinterpret(tensor: Tensor, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Tensor:
    return torch.as_strided(tensor, size, stride, tensor.storage_offset() + offset)
