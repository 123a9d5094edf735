"""Puts the 4-d weights of a U-Net (and of a VAE's decoder) into channels_last, the layout that convolutions run in.

On CUDA, cuDNN and Inductor convolve in channels_last, and re-lay weights in the loaded layout at every call: for SD 1.5
in 52 launches that move 2 GB per full step. We re-lay them once, in place. A Parameter stays the same object with the
same values, but its strides and address change, and earlier captured graphs notice by both.

Users of a weight are counted per Parameter, not per U-Net, because modules can share Parameters. The last pipe to
release a weight restores its strides. A weight that was in channels_last before is the user's choice and stays so.
These are left alone:

- adapters that are not fused (LoRA): they are small, and diffusers' save_lora_weights refuses other strides;
- tensor subclasses (quantised, DTensor), integer tensors, and tensors on the meta device or made in inference mode;
- on a GPU, views into a larger buffer that is managed as a whole (FSDP's flat parameters); on a CPU, memory shared with
  other processes;
- models with offloading hooks on their layers, whose weights are loaded and unloaded all the time.

Each run first looks for weights that were replaced (pipe.to, a fused LoRA, load_state_dict). If nothing has changed,
that costs the host about 50 microseconds for SD 1.5.

A pipe that is garbage-collected without `restore` leaves the weights as they are, because a finalizer must not do GPU
work. Their strides are remembered for the next pipe that is accelerated and restored on them.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .weights import Edge, Stride, edges_of, in_both_layouts, is_eligible, is_laid_out, lay, settled, weights_of

logger = logging.getLogger("stepcache")

# Guards all shared state in this file. Take it before the locks in graphs/turns.py, never while holding one, and never
# in a finalizer, which the garbage collector may run in any thread at any point.
_lock = threading.RLock()


class Part(NamedTuple):
    """A model whose weights should be in channels_last.

    name: in messages. root: the model that has the offloading hooks: this one, or a decoder's VAE.
    """

    name: str
    model: nn.Module
    root: nn.Module


@dataclass(eq=False)
class _Origin:
    """A weight's original shape and strides, and who needs it in channels_last."""

    shape: torch.Size
    stride: Stride
    holders: weakref.WeakSet[ChannelsLast]

    def is_held(self) -> bool:
        """Whether any pipe still needs it in channels_last."""
        return any(holder.is_open for holder in tuple(self.holders))


# By Parameter: all weights whose strides we changed.
_origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class _Seat(NamedTuple):
    """A parameter's place (module and name), and the strides it had there in channels_last."""

    module: weakref.ref[nn.Module]
    name: str
    stride: Stride

    @property
    def tensor(self) -> Tensor | None:
        """The parameter there now."""
        module = self.module()
        return None if module is None else module._parameters.get(self.name)

    def is_held(self) -> bool:
        """Whether the parameter there now has an `_Origin`, or there is none any more."""
        tensor = self.tensor
        return tensor is None or tensor in _origins


def _seat(module: nn.Module, name: str, tensor: Tensor) -> _Seat:
    return _Seat(weakref.ref(module), name, tensor.stride())


class _Share:
    """The weights of one model that one pipe has put into channels_last."""

    def __init__(self, model: nn.Module) -> None:
        # Weak references to the model and its parts: the pipe may drop its U-Net.
        self.model = weakref.ref(model)
        # The weights to check in each run (not those of 1 x 1 kernels, which are in both layouts at once), and the
        # parent-child links that lead to them.
        self._seats: list[_Seat] | None = None
        self._edges: list[Edge] = []
        self._held: list[tuple[weakref.ref[Tensor], _Seat, _Origin]] = []

    def is_laid_out(self) -> bool:
        """Whether modules and strides are the same as after `hold`. Must be cheap: each run calls it."""
        if self._seats is None:
            return False
        for above, name, below in self._edges:
            parent, child = above(), below()
            if parent is None or child is None or parent._modules.get(name) is not child:
                return False
        for module, name, stride in self._seats:
            found = module()
            if found is None or (tensor := found._parameters.get(name)) is None or tensor.stride() != stride:
                return False
        return True

    def on_cuda(self) -> bool:
        """Whether the model's weights are on CUDA, judged by the first."""
        model = self.model()
        first = None if model is None else next(model.parameters(), None)
        return first is not None and first.is_cuda

    def hold(self, holder: ChannelsLast) -> int:
        """Put the model's weights into channels_last for `holder`; returns how many were re-laid."""
        model = self.model()
        assert model is not None
        found, places, meta = weights_of(model)
        mine = [(module, name, tensor) for module, name, tensor in found if not in_both_layouts(tensor)]
        with settled(tensor for _, _, tensor in mine if not is_laid_out(tensor)):
            count = sum(self._hold(holder, *weight) for weight in mine)
        # Parameters on the meta device may get weights later (when hooks are removed), so check in full each time.
        self._seats = None if meta else [_seat(*weight) for weight in mine]
        self._edges = edges_of([module for module, _, _ in mine], places)
        # Forget deleted Parameters once their replacements are held.
        self._held = [(ref, seat, o) for ref, seat, o in self._held if ref() is not None or not seat.is_held()]
        return count

    def _hold(self, holder: ChannelsLast, module: nn.Module, name: str, tensor: Tensor) -> bool:
        known: _Origin | None = _origins.get(tensor)
        relay = not is_laid_out(tensor)
        if not relay and known is None:
            return False  # the user put it into channels_last
        if known is None:
            known = _origins[tensor] = _Origin(tensor.shape, tensor.stride(), weakref.WeakSet())
        elif relay:  # the user has since given it new data, in another layout
            known.shape, known.stride = tensor.shape, tensor.stride()
        if holder not in known.holders:
            known.holders.add(holder)
            self._held.append((weakref.ref(tensor), _seat(module, name, tensor), known))
        if relay:
            lay(tensor, tensor.detach().contiguous(memory_format=torch.channels_last))
        return relay

    def adopt(self, holder: ChannelsLast, strides: dict[str, Stride]) -> None:
        """Take over the original strides, by parameter name, of the model that this one is a copy of."""
        model = self.model()
        assert model is not None
        for path, stride in strides.items():
            at, _, name = path.rpartition(".")
            try:
                tensor = model.get_parameter(path)
            except AttributeError:
                continue
            if tensor not in _origins and is_eligible(tensor) and is_laid_out(tensor) and len(stride) == tensor.dim():
                origin = _origins[tensor] = _Origin(tensor.shape, stride, weakref.WeakSet([holder]))
                self._held.append((weakref.ref(tensor), _seat(model.get_submodule(at), name, tensor), origin))

    def strides(self) -> dict[str, Stride]:
        """The weights' original strides, by parameter name."""
        model = self.model()
        mine = {id(tensor): origin for ref, _, origin in self._held if (tensor := ref()) is not None}
        if model is None or not mine:
            return {}
        return {name: mine[id(p)].stride for name, p in model.named_parameters() if id(p) in mine}

    def put_back(self, holder: ChannelsLast) -> None:
        """Release the weights of `holder`, and restore the strides of those that no other pipe needs."""
        free: dict[int, tuple[Tensor, _Origin]] = {}
        held, self._held, self._seats = self._held, [], None
        for ref, seat, origin in held:
            origin.holders.discard(holder)
            # Hooks that offload layer by layer replace a Parameter with another of the same strides: handle both.
            for tensor in (ref(), seat.tensor):
                if tensor is None or origin.is_held():
                    continue
                if _origins.get(tensor, origin) is origin:
                    free[id(tensor)] = tensor, origin
        # Skip weights that have since been given data in another shape or layout: that is the user's choice.
        moved = [
            (tensor, origin.stride)
            for tensor, origin in free.values()
            if is_eligible(tensor) and tensor.shape == origin.shape and is_laid_out(tensor)
        ]
        with settled(tensor for tensor, _ in moved):
            for tensor, stride in moved:
                empty = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
                lay(tensor, empty.copy_(tensor))
        for tensor, _ in free.values():
            _origins.pop(tensor, None)


class ChannelsLast:
    """The weights that one accelerated pipe has in channels_last.

    wanted: True, False, or "auto": if the model is on CUDA, or offloading hooks move it there. inherited: the
    `strides()` of the pipe that this one is a copy of.
    """

    def __init__(self, wanted: bool | str, inherited: dict[str, dict[str, Stride]] | None = None) -> None:
        self.wanted = wanted
        self._inherited = dict(inherited or {})
        self._shares: list[tuple[str, _Share]] = []
        self._runs = 0
        self._closed = self._said = False

    @property
    def is_open(self) -> bool:
        """Whether its weights are still needed: until it is closed and the runs in progress have ended."""
        return not self._closed or self._runs > 0

    @contextmanager
    def during_run(self, parts: Sequence[Part]) -> Iterator[None]:
        """Hold these models' weights during a run. If closed mid-run, they are put back when it ends."""
        self.hold(parts, run=True)
        try:
            yield
        finally:
            with _lock:
                self._runs -= 1
                if not self.is_open:
                    self._put_back()

    def hold(self, parts: Sequence[Part], run: bool = False) -> None:
        """Put these models' weights into channels_last, and put back those of models no longer among them."""
        with _lock:
            for name, model, root in parts:
                share = self._share(name, model)
                if not self._is_wanted(share, root) or share.is_laid_out():
                    continue
                if _is_offloaded_by_layer(root):
                    if self.wanted is True and not self._said:
                        self._said = True
                        logger.warning(
                            "channels_last=True: hooks offload the %s layer by layer, so its weights stay as they are.",
                            name,
                        )
                    continue
                if count := share.hold(self):
                    logger.info("put %d weights of the %s into channels_last", count, name)
            if not self._runs:
                models = [part.model for part in parts]
                self._put_back(keep=[share for _, share in self._shares if share.model() in models])
            self._runs += run

    def _share(self, name: str, model: nn.Module) -> _Share:
        for _, share in self._shares:
            if share.model() is model:
                return share
        self._shares.append((name, share := _Share(model)))
        share.adopt(self, self._inherited.pop(name, {}))
        return share

    def _is_wanted(self, share: _Share, root: nn.Module) -> bool:
        return self.wanted is True or (self.wanted == "auto" and (share.on_cuda() or _is_offloaded_from_cuda(root)))

    def strides(self) -> dict[str, dict[str, Stride]]:
        """The weights' original strides, by part and parameter name; a copy of the pipe inherits them."""
        with _lock:
            return {**self._inherited, **{name: share.strides() for name, share in self._shares}}

    def close(self, parts: Sequence[Part] = ()) -> None:
        """Put everything back, now or when the runs in progress end. parts: the pipe's models."""
        with _lock:
            for name, model, _ in parts:
                if name in self._inherited:
                    self._share(name, model)
            self._closed = True
            if not self.is_open:
                self._put_back()

    def abandon(self) -> None:
        """Release everything without touching a weight: for finalizers."""
        self._closed = True

    def _put_back(self, keep: Sequence[_Share] = ()) -> None:
        for entry in list(self._shares):
            if entry[1] not in keep:
                self._shares.remove(entry)
                entry[1].put_back(self)


def _is_offloaded_from_cuda(root: nn.Module) -> bool:
    """Whether an offloading hook of accelerate moves the model to CUDA for each run."""
    hook = vars(root).get("_hf_hook")
    devices = [getattr(each, "execution_device", None) for each in getattr(hook, "hooks", (hook,))]
    # An int is a GPU's index.
    return any(isinstance(d, int) or (d is not None and torch.device(d).type == "cuda") for d in devices)


def _is_offloaded_by_layer(root: nn.Module) -> bool:
    """Whether hooks of accelerate or diffusers are on the model's layers."""
    for module in root.modules():
        values = vars(module)
        if module is not root and ("_hf_hook" in values or getattr(values.get("_diffusers_hook"), "hooks", None)):
            return True
    return False
