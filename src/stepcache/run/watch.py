"""Intercepts calls during a run: of the U-Net's forward, the scheduler, regional blocks and the VAE's decoder.

An interception is an instance attribute, set while runs need it. It looks up the calling thread's run, and behaves as
the original if there is none. Threads whose pipes share a U-Net or scheduler share the interception; the last one
removes it.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..graphs.regional import call_block
from ..pipes.seat import ORIGINAL, seat
from ..pipes.vae import vae_of
from .current import runs
from .session import Session
from .timesteps import without_waits


def watch(pipe: Any, session: Session, places: ExitStack) -> None:
    """Intercept every call on `pipe` that `session` must see or answer, until `places` is closed."""
    unet, engine = session.unet, session.engine
    owner, name = seat(unet)
    places.enter_context(Interception.on(owner, name, functools.partial(_unet_in_session, unet)))
    _watch_scheduler(session.scheduler, places)
    for block in engine.unet_graphs.blocks(unet):
        places.enter_context(Interception.on(block, "forward", functools.partial(_block_in_session, block)))
    if engine.decoder is not None:
        vae, decoder = vae_of(pipe)
        engine.decoder.begin_run(vae, decoder)
        places.enter_context(Interception.on(decoder, "forward", functools.partial(_decoder_in_session, decoder)))


def follow_scheduler(pipe: Any, name: str, places: ExitStack, session: Session) -> None:
    """Watch the pipe's new scheduler if the pipe replaced its attribute `name` mid-run."""
    scheduler = getattr(pipe, name)
    if scheduler is not session.scheduler:
        session.scheduler = scheduler
        _watch_scheduler(session.scheduler, places)
        session.begin_loop()


class _Replacement:
    """Replaces `stock` (`owner.name`, a method or a plain function on the owner) with `intercepted`.

    It has stock's signature, which pipelines inspect. A deep copy of the owner, made in a callback for example, gets
    the stock method bound to itself. A deep copy of only its attributes keeps this object, because panorama pipelines
    save and restore `vars(scheduler)` around each view.
    """

    def __init__(self, owner: object, name: str, stock: Callable[..., Any], intercepted: Callable[..., Any]) -> None:
        functools.update_wrapper(self, stock)
        self._owner, self._name, self._stock, self._intercepted = owner, name, stock, intercepted
        setattr(self, ORIGINAL, stock)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._intercepted(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._owner))
        if copied is None:
            return self
        function = getattr(self._stock, "__func__", None)
        return self._stock if function is None else types.MethodType(function, copied)

    def __reduce__(self) -> Any:
        return getattr, (self._owner, self._name)


class Interception:
    """Replaces `owner.name` with `wrap(stock)`, where `stock` is the original, while at least one run needs it."""

    # Reentrant: the garbage collector may close a generator's run anywhere.
    _lock = threading.RLock()
    _installed: dict[tuple[int, str], Interception] = {}  # noqa: RUF012  # all interceptions, shared on purpose

    def __init__(self, owner: object, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.owner, self.name, self.users = owner, name, 0
        self.original = stock = getattr(owner, name)
        # The copy of a watched object has its class's method as an attribute (_Replacement), which can be deleted.
        self.missing = name not in vars(owner) or _is_own_method(stock, owner, name)
        self.replacement = _Replacement(owner, name, stock, wrap(stock))

    @classmethod
    @contextmanager
    def on(cls, owner: object, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        """Replace `owner.name` by `wrap(original)` once for all threads that ask for it; the last one undoes it."""
        key = (id(owner), name)
        with cls._lock:
            here = cls._installed.get(key)
            if here is None:
                made = cls(owner, name, wrap)
                here = cls._installed.setdefault(key, made)
                vars(owner)[name] = here.replacement
            here.users += 1
        try:
            yield
        finally:
            with cls._lock:
                here.users -= 1
                if not here.users:
                    del cls._installed[key]
                    here._undo()

    def _undo(self) -> None:
        # Leave it alone if it has been replaced since (by an offload hook added in a callback, for example).
        if vars(self.owner).get(self.name) is not self.replacement:
            return
        if self.missing:
            del vars(self.owner)[self.name]
        else:
            vars(self.owner)[self.name] = self.original


def _is_own_method(value: Any, owner: object, name: str) -> bool:
    function = getattr(value, "__func__", None)
    return function is not None and value.__self__ is owner and function is getattr(type(owner), name, None)


def _unet_in_session(unet: nn.Module, stock: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        session = next((session for session in runs() if session.unet is unet), None)
        return stock(*args, **kwargs) if session is None else session.call(stock, args, kwargs)

    return forward


def _block_in_session(block: nn.Module, stock: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: call_block(block, stock, args, kwargs)


def _decoder_in_session(decoder: nn.Module, stock: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        every = (session.engine.decoder for session in runs())
        graphs = next((graphs for graphs in every if graphs is not None and graphs.belongs_to(decoder)), None)
        return stock(*args, **kwargs) if graphs is None else graphs.call(decoder, stock, args, kwargs)

    return forward


def _step_in_session(scheduler: object, stock: Callable[..., Any]) -> Callable[..., Any]:
    unwaiting = without_waits(scheduler, stock)

    def step(*args: Any, **kwargs: Any) -> Any:
        session = _stepped_by(scheduler)
        if session is None:
            return stock(*args, **kwargs)
        result = unwaiting(*args, **kwargs)
        session.advance(args[1] if len(args) > 1 else kwargs.get("timestep"))
        return result

    return step


def _set_timesteps_in_session(scheduler: object, stock: Callable[..., Any]) -> Callable[..., Any]:
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs)
        session = _stepped_by(scheduler)
        if session is not None:
            session.begin_loop()
        return result

    return set_timesteps


def _stepped_by(scheduler: object) -> Session | None:
    return next((session for session in runs() if session.scheduler is scheduler), None)


def _watch_scheduler(scheduler: object, places: ExitStack) -> None:
    """Watch the scheduler's `step` and `set_timesteps` until `places` is closed."""
    for method, wrap in (("step", _step_in_session), ("set_timesteps", _set_timesteps_in_session)):
        if hasattr(scheduler, method):
            places.enter_context(Interception.on(scheduler, method, functools.partial(wrap, scheduler)))
