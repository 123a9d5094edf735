"""Weights in channels_last: the 4-d ones of a U-Net (and of a VAE's decoder) in the layout that convolutions run in.

On CUDA cuDNN and Inductor convolve in channels_last. Weights as they are loaded are re-laid in every call, for SD 1.5
in 52 launches that move 2 GB a full step. Here they are re-laid once, in place: a Parameter stays the same object with
the same values, and has other strides at another address. Graphs that were captured before see that by both.

Who needs a weight so is counted by Parameter, not by U-Net, since modules can share them: the last pipe that gives one
back puts its strides back. What had channels_last already is the user's own and stays. So does what is none of ours:

- adapters that are not fused (LoRA): they are small, and diffusers' save_lora_weights refuses other strides;
- tensors of a subclass (quantised, DTensor), of integers, on the meta device, or made in inference mode;
- on a GPU a view into a larger buffer, which somebody manages as a whole (FSDP's flat parameters), and on a CPU memory
  that is shared with other processes;
- a model with offloading hooks on its layers, whose weights come and go.

A weight that is replaced in the meantime (pipe.to, a fused LoRA, load_state_dict) is looked at again at each run's
start, which costs the host about 50 microseconds for SD 1.5 where nothing has changed.

A pipe that is garbage-collected without `restore` leaves the weights as they are, since no work for a GPU belongs into
a finalizer. Their strides are remembered for the next pipe that is accelerated and restored on them.
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

# Of everything in this file that is shared. Taken before the engine's turns (graphs/turns.py), never inside of one; and
# never in a finalizer, which the garbage collector may run in any thread at any point.
_lock = threading.RLock()


class Part(NamedTuple):
    """A model whose weights are wanted in channels_last. name: what it is to the pipe. root: where offloading hooks
    of the whole sit; the model itself, or the VAE of a decoder.
    """

    name: str
    model: nn.Module
    root: nn.Module


@dataclass(eq=False)
class _Origin:
    """What a weight was before, and who needs it in channels_last."""

    shape: torch.Size
    stride: Stride
    holders: weakref.WeakSet[Layout]

    def is_held(self) -> bool:
        """Whether anybody needs it."""
        return any(holder.is_open for holder in tuple(self.holders))


# By Parameter: those that are not as the user had them.
_origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class _Seat(NamedTuple):
    """A place in a module that had a weight in channels_last, and its strides there."""

    module: weakref.ref[nn.Module]
    name: str
    stride: Stride

    @property
    def tensor(self) -> Tensor | None:
        """What is there now."""
        module = self.module()
        return None if module is None else module._parameters.get(self.name)

    def is_held(self) -> bool:
        """Whether what is there now is on record itself, or nothing is there any more."""
        tensor = self.tensor
        return tensor is None or tensor in _origins


def _seat(module: nn.Module, name: str, tensor: Tensor) -> _Seat:
    return _Seat(weakref.ref(module), name, tensor.stride())


class _Share:
    """What one pipe has put into channels_last of one model."""

    def __init__(self, model: nn.Module) -> None:
        # Weakly, with all that is in it: the pipe may drop its U-Net.
        self.model = weakref.ref(model)
        # Those to be looked at in each run (weights of 1 x 1 kernels are in both layouts at once), and who is whose
        # child on the way to them.
        self._seats: list[_Seat] | None = None
        self._edges: list[Edge] = []
        self._held: list[tuple[weakref.ref[Tensor], _Seat, _Origin]] = []

    def is_laid_out(self) -> bool:
        """Whether nothing has changed since `hold`: the modules are in their places, and the weights have the strides.

        Cheap, since it is asked in each run.
        """
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

    def hold(self, holder: Layout) -> int:
        """Put into channels_last what is not, for `holder`; returns how many weights were re-laid."""
        model = self.model()
        assert model is not None
        found, places, meta = weights_of(model)
        mine = [(module, name, tensor) for module, name, tensor in found if not in_both_layouts(tensor)]
        with settled(tensor for _, _, tensor in mine if not is_laid_out(tensor)):
            count = sum(self._hold(holder, *weight) for weight in mine)
        # What is on no device now may be given weights later (hooks that are taken off).
        self._seats = None if meta else [_seat(*weight) for weight in mine]
        self._edges = edges_of([module for module, _, _ in mine], places)
        # Parameters that are gone count for nothing once the ones in their places are held themselves.
        self._held = [(ref, seat, o) for ref, seat, o in self._held if ref() is not None or not seat.is_held()]
        return count

    def _hold(self, holder: Layout, module: nn.Module, name: str, tensor: Tensor) -> bool:
        known: _Origin | None = _origins.get(tensor)
        relay = not is_laid_out(tensor)
        if not relay and known is None:
            return False  # the user's own
        if known is None:
            known = _origins[tensor] = _Origin(tensor.shape, tensor.stride(), weakref.WeakSet())
        elif relay:  # new data since, in a layout that is the user's
            known.shape, known.stride = tensor.shape, tensor.stride()
        if holder not in known.holders:
            known.holders.add(holder)
            self._held.append((weakref.ref(tensor), _seat(module, name, tensor), known))
        if relay:
            lay(tensor, tensor.detach().contiguous(memory_format=torch.channels_last))
        return relay

    def adopt(self, holder: Layout, strides: dict[str, Stride]) -> None:
        """Take over what was recorded of the model that this one is a copy of. strides: by the parameters' names."""
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
        """The strides that weights had before, by the parameters' names."""
        model = self.model()
        mine = {id(tensor): origin for ref, _, origin in self._held if (tensor := ref()) is not None}
        if model is None or not mine:
            return {}
        return {name: mine[id(p)].stride for name, p in model.named_parameters() if id(p) in mine}

    def put_back(self, holder: Layout) -> None:
        """Give back what `holder` has, with the strides that it had where nobody else needs it."""
        free: dict[int, tuple[Tensor, _Origin]] = {}
        held, self._held, self._seats = self._held, [], None
        for ref, seat, origin in held:
            origin.holders.discard(holder)
            # Hooks that offload layer by layer replace Parameters, by ones with the same strides.
            for tensor in (ref(), seat.tensor):
                if tensor is None or origin.is_held():
                    continue
                if _origins.get(tensor, origin) is origin:
                    free[id(tensor)] = tensor, origin
        # Data that came in the meantime, in a layout or shape of its own, is as the user has it.
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


class Layout:
    """What one accelerated pipe has in channels_last.

    wanted: True, False, or "auto": where the model is on CUDA, or offloading hooks take it there. inherited: what
    `strides` told of the pipe that this one is a copy of.
    """

    def __init__(self, wanted: bool | str, inherited: dict[str, dict[str, Stride]] | None = None) -> None:
        self.wanted = wanted
        self._inherited = dict(inherited or {})
        self._shares: list[tuple[str, _Share]] = []
        self._runs = 0
        self._closed = self._said = False

    @property
    def is_open(self) -> bool:
        """Whether what it holds is still needed: until it is closed, and to the end of the runs going on then."""
        return not self._closed or self._runs > 0

    @contextmanager
    def during_run(self, parts: Sequence[Part]) -> Iterator[None]:
        """A run on these models. What is closed in the midst of it is put back at its end."""
        self.hold(parts, run=True)
        try:
            yield
        finally:
            with _lock:
                self._runs -= 1
                if not self.is_open:
                    self._put_back()

    def hold(self, parts: Sequence[Part], run: bool = False) -> None:
        """Put these models' weights into channels_last where they are not, and put back others of before."""
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
                    logger.info("%d weights of the %s put into channels_last", count, name)
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
        """The strides that weights had before, by part and parameter: what a copy of the pipe inherits."""
        with _lock:
            return {**self._inherited, **{name: share.strides() for name, share in self._shares}}

    def close(self, parts: Sequence[Part] = ()) -> None:
        """Give everything back, at once or when the runs that go on are at their end. parts: the pipe's models."""
        with _lock:
            for name, model, _ in parts:
                if name in self._inherited:
                    self._share(name, model)
            self._closed = True
            if not self.is_open:
                self._put_back()

    def abandon(self) -> None:
        """Need nothing any more, and touch no weight: for finalizers."""
        self._closed = True

    def _put_back(self, keep: Sequence[_Share] = ()) -> None:
        for entry in list(self._shares):
            if entry[1] not in keep:
                self._shares.remove(entry)
                entry[1].put_back(self)


def _is_offloaded_from_cuda(root: nn.Module) -> bool:
    """Whether an offloading hook of accelerate takes the model to CUDA for each run."""
    hook = vars(root).get("_hf_hook")
    devices = [getattr(each, "execution_device", None) for each in getattr(hook, "hooks", (hook,))]
    # A number is a GPU's.
    return any(isinstance(d, int) or (d is not None and torch.device(d).type == "cuda") for d in devices)


def _is_offloaded_by_layer(root: nn.Module) -> bool:
    """Whether hooks of accelerate or diffusers sit on the model's layers."""
    for module in root.modules():
        values = vars(module)
        if module is not root and ("_hf_hook" in values or getattr(values.get("_diffusers_hook"), "hooks", None)):
            return True
    return False
