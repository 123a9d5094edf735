"""The one file that changes an object of the user's.

An accelerated pipe is an instance of a subclass of its own class, with the same name, made for that one pipe; its
settings hang on that subclass, so `vars(pipe)` stays as it was. Outside a run nothing else is changed at all. During a
run (a pipeline call or a `denoising` block) the U-Net's forward and the scheduler's `step` are instance attributes that
ask which run the calling thread is in, and behave as the original where it is in none.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from .batches import guided
from .buffers import Buckets
from .decoder import DecoderGraphs, vae_of
from .errors import AlreadyCached, InvalidSetting, NotAccelerated, UnsupportedPipeline
from .forwards import family_of
from .graphs import Plan
from .predict import Predictor
from .schedule import Schedule
from .session import Core, RunRecord, Session, current
from .settings import Settings
from .timesteps import without_waits

_ATTACHMENT = "_stepcache_attachment"
_ORIGINAL = "_stepcache_original"

# The schedule of a warm-up, in the place of the pipe's own.
rehearsal: ContextVar[Schedule | None] = ContextVar("stepcache_rehearsal", default=None)


class _Replacement:
    """`intercepted` in the place of `stock`, which is `owner.name`: its method, or a plain function on it.

    It has stock's signature, which pipelines look at. A copy of the owner, made in a callback say, has the stock method
    bound to itself. A copy of its attributes alone has this very object: panorama pipelines save and put back
    `vars(scheduler)` around each view.
    """

    def __init__(self, owner: object, name: str, stock: Callable[..., Any], intercepted: Callable[..., Any]) -> None:
        functools.update_wrapper(self, stock)
        self._owner, self._name, self._stock, self._intercepted = owner, name, stock, intercepted
        setattr(self, _ORIGINAL, stock)

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


class _Interception:
    """A function put in the place of `owner.name`, for as long as at least one run needs it.

    `wrap(stock)` makes it from what was there.
    """

    _lock = threading.Lock()
    _installed: dict[tuple[int, str], _Interception] = {}  # noqa: RUF012  # all of them, shared on purpose

    def __init__(self, owner: object, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.owner, self.name, self.users = owner, name, 0
        self.original = stock = getattr(owner, name)
        # A copy of a watched object has its class's own method as an attribute (_Replacement): it can do without.
        self.missing = name not in vars(owner) or _is_own_method(stock, owner, name)
        self.replacement = _Replacement(owner, name, stock, wrap(stock))

    @classmethod
    @contextmanager
    def on(cls, owner: object, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        """`owner.name` replaced by `wrap(original)`, once for all threads that ask for it; undone by the last."""
        key = (id(owner), name)
        with cls._lock:
            here = cls._installed.get(key)
            if here is None:
                here = cls._installed[key] = cls(owner, name, wrap)
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
        # Somebody who replaced it in the meantime (an offload hook put on in a callback) keeps his own.
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
        session = current.get()
        if session is None or session.unet is not unet:
            return stock(*args, **kwargs)
        return session.call(stock, args, kwargs)

    return forward


def _block_in_session(block: nn.Module, stock: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        session = current.get()
        return stock(*args, **kwargs) if session is None else session.core.plan.run_block(block, stock, args, kwargs)

    return forward


def _decoder_in_session(decoder: nn.Module, stock: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        session = current.get()
        graphs = None if session is None else session.core.decoder
        if graphs is None or not graphs.belongs_to(decoder):
            return stock(*args, **kwargs)
        return graphs.call(decoder, stock, args, kwargs)

    return forward


def _step_in_session(scheduler: object, stock: Callable[..., Any]) -> Callable[..., Any]:
    unwaiting = without_waits(scheduler, stock)

    def step(*args: Any, **kwargs: Any) -> Any:
        session = current.get()
        if session is None or session.scheduler is not scheduler:
            return stock(*args, **kwargs)
        result = unwaiting(*args, **kwargs)
        session.advance(args[1] if len(args) > 1 else kwargs.get("timestep"))
        return result

    return step


def _set_timesteps_in_session(scheduler: object, stock: Callable[..., Any]) -> Callable[..., Any]:
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs)
        session = current.get()
        if session is not None and session.scheduler is scheduler:
            session.begin_loop()
        return result

    return set_timesteps


def _watch_scheduler(scheduler: object, places: ExitStack) -> None:
    """Watch what the scheduler is asked to do until `places` is closed."""
    for method, wrap in (("step", _step_in_session), ("set_timesteps", _set_timesteps_in_session)):
        if hasattr(scheduler, method):
            places.enter_context(_Interception.on(scheduler, method, functools.partial(wrap, scheduler)))


def _follow(pipe: Any, places: ExitStack, session: Session) -> None:
    """Watch another scheduler where the pipe has put one in the place of its own in the midst of a run."""
    if pipe.scheduler is not session.scheduler:
        session.scheduler = pipe.scheduler
        _watch_scheduler(session.scheduler, places)
        session.begin_loop()


def _seat(unet: nn.Module) -> tuple[object, str]:
    """Where the U-Net's own forward hangs: under the offloading hooks of diffusers or accelerate, if any."""
    registry = getattr(unet, "_diffusers_hook", None)
    if registry is not None and registry._fn_refs:
        return registry._fn_refs[0], "forward"
    return (unet, "_old_forward") if hasattr(unet, "_old_forward") else (unet, "forward")


def _check_unwrapped(unet: nn.Module) -> None:
    """Raise AlreadyCached where somebody else already stands in the place of the U-Net's forward."""
    if type(unet).__name__ == "OptimizedModule" or getattr(unet, "_compiled_call_impl", None) is not None:
        raise AlreadyCached(
            "pipe.unet is compiled already, which hides its layers. Give stepcache the plain U-Net, which it compiles "
            "itself (pipe.unet = pipe.unet._orig_mod after torch.compile; pipe.unet._compiled_call_impl = None after "
            "pipe.unet.compile)."
        )
    owner, name = _seat(unet)
    forward = getattr(owner, name)
    forward = getattr(forward, _ORIGINAL, forward)
    if getattr(forward, "__func__", None) is not type(unet).forward:
        who = getattr(forward, "__qualname__", repr(forward))
        raise AlreadyCached(
            f"The U-Net's forward is replaced by {who}: another cache or wrapper is on it. Two of them give wrong "
            "images; take the other one off first (DeepCache: helper.disable())."
        )


def _check_no_cache_hooks(unet: nn.Module) -> None:
    """Raise AlreadyCached where one of diffusers' own caches has put its hooks on the U-Net's layers."""
    for path, module in unet.named_modules():
        names = getattr(vars(module).get("_diffusers_hook"), "hooks", ())
        caches = [hook for hook in names if "cache" in hook or "attention_broadcast" in hook]
        if caches:
            raise AlreadyCached(
                f"diffusers' {caches[0]} hook is on the U-Net ({path or 'itself'}). Two caches give wrong images; "
                "disable that one first."
            )


def _unet_of(pipe: object) -> nn.Module:
    """The pipe's U-Net. UnsupportedPipeline, with the type and the way out, where the pipe cannot be accelerated."""
    name = type(pipe).__name__
    unet = getattr(pipe, "unet", None)
    if unet is None and getattr(pipe, "transformer", None) is not None:
        raise UnsupportedPipeline(
            f"{name} denoises with a transformer ({type(pipe.transformer).__name__}). stepcache is for U-Nets; "  # type: ignore[attr-defined]
            "for diffusion transformers see cache-dit or diffusers' own enable_cache."
        )
    scheduler = getattr(pipe, "scheduler", None)
    if unet is not None and scheduler is not None and not hasattr(scheduler, "step"):
        raise UnsupportedPipeline(
            f"{name} steps with a {type(scheduler).__name__}, which has no step(); by its calls stepcache counts. "
            "Run this pipeline without stepcache."
        )
    if unet is None or scheduler is None or not callable(pipe):
        hint = " That is the U-Net itself; pass the pipeline that holds it." if hasattr(pipe, "up_blocks") else ""
        raise UnsupportedPipeline(
            f"accelerate() takes a diffusers pipeline with .unet and .scheduler, got {name}: {pipe!r:.80}.{hint}"
        )
    return unet


class Attachment:
    """What stepcache holds for one pipe: its settings, and between runs the graphs and buffers of its U-Net."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.last: RunRecord | None = None
        self.pipe: weakref.ref[Any] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        # Weakly: the pipe may drop its U-Net or take another one, and its graphs and buffers go with it.
        self._unet: weakref.ref[nn.Module] | None = None
        # More than one only where threads have run the pipe at the same time.
        self._idle: list[Core] = []
        self._open = True
        self._lock = threading.RLock()  # the garbage collector may free a pipe anywhere

    def enter(self, pipe: object) -> None:
        """Belong to `pipe`, and free everything at its end."""
        self.pipe = weakref.ref(pipe)
        # Its class is part of a reference cycle, as all classes are: not left to the garbage collector.
        self._finalizer = weakref.finalize(pipe, self.free)
        self._finalizer.atexit = False

    def prepare(self, pipe: object) -> tuple[nn.Module, Core]:
        """The pipe's U-Net, checked, and a core for it, which the caller now has for itself."""
        unet = _unet_of(pipe)
        if self.settings.reuse_guidance:
            guided(pipe)
        if self.settings.vae:
            vae_of(pipe)
        _check_unwrapped(unet)
        _check_no_cache_hooks(unet)
        family = family_of(unet)
        with self._lock:
            known = self._unet is not None and self._unet() is unet
            self._check_plan(pipe, None if known else unet)
            if not known:
                self._drop()
                self._unet = weakref.ref(unet, lambda _: self._drop())
            if self._idle:
                return unet, self._idle.pop()
        settings = self.settings
        plan = Plan(family, family.layout(unet).cut(settings.branch), settings.graphs, settings.predictor)
        decoder = DecoderGraphs(settings.graphs, settings.max_buckets, plan.costs) if settings.vae else None
        return unet, Core(plan, Buckets(settings.max_buckets), decoder)

    def _check_plan(self, pipe: Any, unet: nn.Module | None) -> None:
        """InvalidSetting where a plan was made for another scheduler than the pipe's, or another U-Net than `unet`."""
        plan = self.settings.plan
        if plan is None or self.settings.adapt:
            return
        made_for = plan.made_for
        reason = made_for.not_the_scheduler(pipe.scheduler) or (
            made_for.not_the_model(unet) if unet is not None else ""
        )
        if reason:
            raise InvalidSetting(
                f"This plan does not fit this pipe: {reason}. Calibrate one for it (stepcache calibrate), or take it "
                "as it is with accelerate(..., adapt=True); its figures do not hold then."
            )

    def _fit(self, pipe: Any, core: Core, steps: int | None) -> tuple[Schedule, Predictor]:
        """Schedule and predictor that the plan has for a run of `steps`, and a word where it is used otherwise."""
        plan = self.settings.plan
        assert plan is not None
        fitting = plan.for_steps(steps, self.settings.adapt)
        if steps != len(plan.mask):
            core.plan.say_once(
                f"A plan for {len(plan.mask)} steps in a run of {steps}: its full steps are stretched to "
                f"{fitting[0].kinds(steps or 0)}, and a line damped by {plan.damping:g} takes the place of its weights."
            )
        guidance, made_for = getattr(pipe, "_guidance_scale", None), plan.made_for.guidance
        if isinstance(guidance, (int, float)) and guidance != made_for:
            core.plan.say_once(
                f"A plan that was calibrated with guidance scale {made_for:g} in a run with {guidance:g}: it works, "
                "but its figures are not those of this run."
            )
        return fitting

    def park(self, unet: nn.Module, core: Core) -> None:
        """Take the core back after a run, or free it where it is of no use any more."""
        with self._lock:
            if self._open and self._unet is not None and self._unet() is unet:
                self._idle.append(core)
                return
        core.clear()

    @contextmanager
    def run(self, pipe: Any, count_steps: Callable[[], int | None], in_call: bool = False) -> Iterator[Session]:
        """One run of `pipe`: everything is in place inside, and as it was afterwards.

        in_call: of the pipe's own call. In a hand-written loop what the pipe says of guidance is its last call's.
        """
        unet, core = self.prepare(pipe)
        scheduler = pipe.scheduler
        schedule = rehearsal.get() or self.settings.schedule
        further: dict[str, Any] = {}
        if self.settings.reuse_guidance and in_call:
            further["guided"] = guided(pipe)
        elif self.settings.reuse_guidance:
            core.plan.say_once("In a denoising block nobody knows what the batch is made of: guidance is not reused.")
        if self.settings.plan is not None and rehearsal.get() is None:
            further["fit"] = functools.partial(self._fit, pipe if in_call else None, core)
        elif self.settings.preset is not None and rehearsal.get() is None:
            further["fit"] = self.settings.preset.for_steps
        session = Session(unet, scheduler, schedule, core, count_steps, **further)
        self.last = session.record
        owner, name = _seat(unet)
        with ExitStack() as places:
            places.enter_context(_Interception.on(owner, name, functools.partial(_unet_in_session, unet)))
            _watch_scheduler(scheduler, places)
            session.follow = functools.partial(_follow, pipe, places)
            for block in core.plan.blocks(unet):
                places.enter_context(_Interception.on(block, "forward", functools.partial(_block_in_session, block)))
            if core.decoder is not None:
                vae, decoder = vae_of(pipe)
                core.decoder.begin_run(vae, decoder)
                decoding = functools.partial(_decoder_in_session, decoder)
                places.enter_context(_Interception.on(decoder, "forward", decoding))
            token = current.set(session)
            try:
                yield session
            finally:
                current.reset(token)
                session.close()
                self.park(unet, core)

    def _drop(self) -> None:
        with self._lock:
            idle, self._idle, self._unet = self._idle, [], None
        for core in idle:
            core.clear()

    def free(self) -> None:
        """Drop graphs and buffers, for good: a run that is still going on frees its own at its end."""
        self._open = False
        if self._finalizer is not None:
            self._finalizer.detach()
        self._drop()


def attachment_of(pipe: object) -> Attachment | None:
    """The pipe's attachment, or None where it is not accelerated."""
    attachment = vars(type(pipe)).get(_ATTACHMENT)
    # Another object of the class that was made for one pipe (type(pipe)(**pipe.components)) is none of ours.
    return attachment if attachment is not None and attachment.pipe() is pipe else None


def attach(pipe: object, settings: Settings) -> None:
    """Accelerate `pipe` with `settings`, in the place of any it had. Raises before it changes anything."""
    attachment = Attachment(settings)
    attachment.park(*attachment.prepare(pipe))
    detach(pipe)
    _enter(pipe, attachment)


def detach(pipe: object) -> None:
    """Give the pipe its own class back and free the buffers. Nothing happens where it is not accelerated."""
    attachment = attachment_of(pipe)
    if attachment is not None:
        pipe.__class__ = type(pipe).__base__  # type: ignore[assignment]
        attachment.free()


def require(pipe: object, what: str) -> Attachment:
    """The pipe's attachment; NotAccelerated where it has none."""
    attachment = attachment_of(pipe)
    if attachment is None:
        raise NotAccelerated(f"{what} needs an accelerated pipe; call accelerate(pipe) on this {type(pipe).__name__}.")
    return attachment


def _enter(pipe: object, attachment: Attachment) -> None:
    """Make `pipe` an instance of a subclass of its class, made for it alone, that runs each call in a session."""
    # Not a subclass made for another pipe, of which this one is an instance all the same (type(that)(**components)).
    base: Any = next(cls for cls in type(pipe).__mro__ if _ATTACHMENT not in vars(cls))

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if attachment_of(self) is None:
            return base.__call__(self, *args, **kwargs)
        with attachment.run(self, functools.partial(_planned_steps, self), in_call=True):
            return base.__call__(self, *args, **kwargs)

    def __reduce_ex__(self: Any, protocol: int) -> Any:
        # A class made for one object cannot be found by name. A copy gets one of its own, and buffers of its own.
        return _revive, (base, attachment.settings if attachment_of(self) else None), vars(self)

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    methods = {"__call__": __call__, "__reduce_ex__": __reduce_ex__}
    pipe.__class__ = type(base)(base.__name__, (base,), {**names, **methods, _ATTACHMENT: attachment})
    attachment.enter(pipe)


def _revive(base: Any, settings: Settings | None) -> object:
    pipe = base.__new__(base)
    if settings is not None:
        _enter(pipe, Attachment(settings))
    return pipe


def _planned_steps(pipe: Any) -> int | None:
    """Steps of the current pipeline call; diffusers' pipelines note them right before their loop."""
    noted = getattr(pipe, "_num_timesteps", None)
    return noted if noted is not None else scheduled_steps(pipe)


def scheduled_steps(pipe: Any) -> int | None:
    """Steps that the pipe's scheduler is set to, or None where it has no timesteps."""
    timesteps = getattr(pipe.scheduler, "timesteps", None)
    return None if timesteps is None else len(timesteps)
