"""Attaches settings, graphs and buffers to a pipe, and runs it with them.

`attach` gives a pipe a subclass of its class, with the same name, made for that pipe alone. Its settings are on the
subclass, so `vars(pipe)` does not change. Outside a run (a pipeline call or a `denoising` block) only the layout of
weights changes besides (channels_last.py). watch.py makes the changes during a run, warmup.py those of a warm-up.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from types import FrameType
from typing import Any

from torch import nn

from ..errors import NotAccelerated, StepCacheError, UnsupportedPipeline
from ..forwards import family_of
from ..graphs.compiled import Compilations
from ..graphs.decoder import DecoderGraphs
from ..graphs.engine import Engine
from ..graphs.unet import UNetGraphs
from ..packages.store import Packages
from ..pipes.batches import guidance_scale, guided, shows_halves
from ..pipes.loops import check_no_loops
from ..pipes.modular import is_modular
from ..pipes.solvers import is_first_order
from ..pipes.unet import checked_unet
from ..pipes.vae import vae_of
from ..reuse.auto import Loop
from ..reuse.predict import Apart, Predictor
from ..reuse.schedule import Schedule
from ..settings import Settings, unusable
from ..values import reason_of
from .channels_last import ChannelsLast, Part
from .current import entered
from .guiders import watch_guider
from .halves import Halves
from .later import later
from .pool import Pool
from .record import RunRecord
from .session import Session, never
from .watch import follow_scheduler, watch

_ATTACHMENT = "_stepcache_attachment"

# The schedule of a warm-up, which replaces the pipe's own.
warm_up_schedule: ContextVar[Schedule | None] = ContextVar("stepcache_warm_up_schedule", default=None)


class Attachment:
    """What stepcache holds for one pipe: its settings, and between runs its graphs and buffers.

    inherited: strides of a copied pipe's weights. pool: that of the pipe of which this is a shallow copy.
    """

    def __init__(self, settings: Settings, inherited: Any = None, pool: Pool | None = None) -> None:
        self.settings = settings
        self.layout = ChannelsLast(settings.channels_last, inherited)
        self.pool = Pool() if pool is None else pool.join()
        self.last: RunRecord | None = None
        self.pipe: weakref.ref[Any] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def enter(self, pipe: object) -> None:
        """Belong to `pipe`, and free everything when it is garbage-collected."""
        self.pipe = weakref.ref(pipe)
        # A finalizer, because the pipe's class is in a reference cycle, as all classes are, and would be freed late.
        self._finalizer = weakref.finalize(pipe, self._end)
        self._finalizer.atexit = False

    def prepare(self, pipe: Any) -> tuple[Pool, nn.Module, Engine]:
        """The pipe's U-Net, checked, and an engine for it that no other run uses, with its pool."""
        unet, settings = checked_unet(pipe, self.settings.scheduler), self.settings
        if settings.reuse_guidance:
            guided(pipe)
        if settings.vae:
            vae_of(pipe)
        family = family_of(unet)
        if settings.plan is not None and not settings.adapt:
            scheduler = getattr(pipe, settings.scheduler)
            settings.plan.check(scheduler, None if self.pool.is_of(unet) else unet)
        predictor, pool = settings.predictor, self.pool
        if not settings.reuse_guidance and not shows_halves(pipe):
            predictor = predictor.whole
        if pool.is_shared and not pool.is_of(unet):  # the copy or the original has another U-Net now
            pool.leave()
            pool = self.pool = Pool()

        def make(compilations: Compilations) -> Engine:
            cut, buckets = family.layout(unet).cut(settings.branch), settings.max_buckets
            graphs = UNetGraphs(family, cut, settings.graphs, buckets, predictor, compilations)
            decoder = DecoderGraphs(settings.graphs, buckets, graphs.costs, compilations) if settings.vae else None
            return Engine(graphs, decoder)

        return pool, unet, pool.take(unet, make)

    def park(self, pool: Pool, unet: nn.Module, engine: Engine, *records: RunRecord) -> None:
        """Give the engine back after a run, and note in the records what all engines hold."""
        pool.give_back(unet, engine)
        for record in records if self.last is None else (*records, self.last):
            record.buffer_bytes, record.static_bytes = pool.nbytes

    @contextmanager
    def run(
        self,
        pipe: Any,
        count_steps: Callable[[], int | None],
        in_call: bool = False,
        generator: FrameType | None = None,
    ) -> Iterator[Session]:
        """One run of `pipe`: install everything, and undo it afterwards.

        in_call: whether the pipe's own call runs. In a hand-written loop the pipe's guidance attributes are those of
        its last call. generator: the frame of the generator that runs the loop, if one does.
        """
        with ExitStack() as places:
            pool, unet, engine = self.prepare(pipe)
            record, name = RunRecord(), self.settings.scheduler
            places.callback(self.park, pool, unet, engine, record)  # last, whatever fails before
            say_once, warming_up = engine.unet_graphs.fallback.say_once, warm_up_schedule.get()

            # With guidance reuse the difference is a value of its own, even where the halves come in separate calls.
            known = in_call and (self.settings.reuse_guidance or shows_halves(pipe))

            def fit(steps: int | None) -> tuple[Schedule, Predictor]:
                schedule, predictor = warming_up, self.settings.predictor
                if schedule is None:
                    guidance = guidance_scale(pipe) if in_call else None
                    loop = Loop(steps, _length(pipe, name), is_first_order(getattr(pipe, name)), guidance)
                    schedule, predictor = self.settings.for_loop(loop)
                    for remark in self.settings.remarks(steps, guidance):
                        say_once(remark)
                    if isinstance(predictor, Apart) and not known:
                        say_once(
                            f"This run's batches are not known to be the two halves of guidance, so their dampings "
                            f"{predictor.mean:g} and {predictor.difference:g} are one: {predictor.whole.damping:g}."
                        )
                return schedule, predictor if known else predictor.whole

            is_guided = guided(pipe) if known else never
            if self.settings.reuse_guidance and not in_call:
                say_once("A denoising block does not tell what its batch is made of, so guidance is not reused.")
            follow = functools.partial(follow_scheduler, pipe, name, places)
            scheduler = getattr(pipe, name)
            session = Session(
                unet, scheduler, engine, fit, count_steps, record, pool.known_code, is_guided,
                self.settings.reuse_guidance, follow,
            )  # fmt: skip
            if self.settings.reuse_guidance and in_call and is_modular(pipe):
                session.halves = Halves()
            self.last = record
            places.enter_context(self.layout.during_run(self.parts(pipe)))
            watch(pipe, session, places)
            watch_guider(pipe, session, places)
            try:
                with entered(session, generator):
                    yield session
                if session.gradients and not in_call:
                    say_once(
                        f"{session.gradients} of {len(record.letters)} U-Net calls in a denoising block required "
                        "gradients and ran the original. If the loop needs none, put it under torch.no_grad()."
                    )
                if generator is not None and not in_call and not record.letters:
                    say_once(
                        "A denoising block in a generator saw no U-Net call: only those are seen that the generator "
                        "itself makes, or what it calls."
                    )
            finally:
                session.close()

    def run_of_call(self, pipe: Any, **options: Any) -> AbstractContextManager[Session]:
        """A run of the pipe's own call."""
        count = functools.partial(_planned_steps, pipe, self.settings.scheduler)
        return self.run(pipe, count, in_call=True, **options)

    def parts(self, pipe: Any) -> list[Part]:
        """The models of the pipe whose weights may be put into channels_last."""
        unet = getattr(pipe, "unet", None)
        parts = [Part("U-Net", unet, unet)] if isinstance(unet, nn.Module) else []
        if self.settings.vae:
            with suppress(StepCacheError):
                vae, decoder = vae_of(pipe)
                parts.append(Part("VAE's decoder", decoder, vae))
        return parts

    def _end(self) -> None:
        """Called when the pipe is garbage-collected: free what is held, and leave the weights as they are."""
        self.layout.abandon()
        self.free()

    def free(self) -> None:
        """Drop graphs and buffers for good. A run in progress frees its own when it ends."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self.pool.leave()


def attachment_of(pipe: object) -> Attachment | None:
    """The pipe's attachment, or None if it is not accelerated."""
    attachment = vars(type(pipe)).get(_ATTACHMENT)
    # Another instance of an accelerated pipe's class (type(pipe)(**pipe.components)) is not accelerated.
    return attachment if attachment is not None and attachment.pipe() is pipe else None


def attach(pipe: object, settings: Settings) -> None:
    """Accelerate `pipe` with `settings`, which replace any earlier ones. Raises before it changes anything."""
    attachment = Attachment(settings)
    pool, unet, engine = attachment.prepare(pipe)
    attachment.park(pool, unet, engine)
    _check_class(pipe)
    check_no_loops(pipe)
    packages = settings.graphs.packages
    reason = "" if packages is None else _unsuited(packages, unet, engine, settings)
    if packages is not None and reason:
        unusable(f"{packages.folder}: {reason}", packages.only)
        attachment = Attachment(replace(settings, graphs=replace(settings.graphs, packages=None)))
    # Before `detach`: weights that the old and the new settings want in channels_last are not re-laid twice.
    try:
        attachment.layout.hold(attachment.parts(pipe))
    except BaseException:  # out of memory
        attachment.layout.close()
        raise
    detach(pipe)
    _enter(pipe, attachment)


def _check_class(pipe: Any) -> None:
    """Raise UnsupportedPipeline if `pipe` cannot be given another class, or be referred to weakly."""
    if attachment_of(pipe) is not None:
        return
    own: Any = type(pipe)
    try:
        weakref.ref(pipe)
        vars(pipe)
        pipe.__class__ = type(own)(own.__name__, (own,), {"__module__": own.__module__})
        pipe.__class__ = own
    except Exception as error:
        raise UnsupportedPipeline(
            f"accelerate() gives the pipe a subclass of its class, and a {own.__name__} cannot have one: "
            f"{reason_of(error)}. Let the class be an ordinary one, without __slots__, whose attributes can be set."
        ) from error


def _unsuited(packages: Packages, unet: nn.Module, engine: Engine, settings: Settings) -> str:
    return packages.unsuited(unet, engine.unet_graphs.graph(settings.reuse_guidance), settings.vae)


def detach(pipe: object) -> None:
    """Give the pipe its own class back and free the buffers. Does nothing if it is not accelerated."""
    attachment = attachment_of(pipe)
    if attachment is not None:
        pipe.__class__ = type(pipe).__base__  # type: ignore[assignment]
        attachment.free()
        attachment.layout.close(attachment.parts(pipe))


def require(pipe: object, what: str) -> Attachment:
    """The pipe's attachment. Raises NotAccelerated if it has none; `what` names the caller."""
    attachment = attachment_of(pipe)
    if attachment is None:
        raise NotAccelerated(f"{what} needs an accelerated pipe; call accelerate(pipe) on this {type(pipe).__name__}.")
    return attachment


def _enter(pipe: object, attachment: Attachment) -> None:
    """Give `pipe` its own subclass of its class, which runs each call in a session."""
    # Skip a subclass made for another pipe: this one may be an instance of it (type(other)(**components)).
    base: Any = next(cls for cls in type(pipe).__mro__ if _ATTACHMENT not in vars(cls))

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if attachment_of(self) is None:
            return base.__call__(self, *args, **kwargs)
        with attachment.run_of_call(self):
            result = base.__call__(self, *args, **kwargs)
        return later(result, functools.partial(_later_run, self))

    def __copy__(self: Any) -> Any:
        # A server's copy for each request shares the U-Net, so it shares graphs and buffers too.
        accelerated = attachment_of(self) is not None
        ours = (attachment.settings, attachment.layout.strides(), attachment.pool) if accelerated else ()
        copied = _revive(base, *ours)
        vars(copied).update(vars(self))
        return copied

    def __reduce_ex__(self: Any, protocol: int) -> Any:
        # pickle cannot find a class made for one object by its name. A copy gets its own class and buffers.
        accelerated = attachment_of(self) is not None
        ours = (attachment.settings, attachment.layout.strides()) if accelerated else ()
        return _revive, (base, *ours), vars(self)

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    methods = {"__call__": __call__, "__copy__": __copy__, "__reduce_ex__": __reduce_ex__}
    pipe.__class__ = type(base)(base.__name__, (base,), {**names, **methods, _ATTACHMENT: attachment})
    attachment.enter(pipe)


@contextmanager
def _later_run(pipe: Any, generator: FrameType | None = None) -> Iterator[None]:
    """A run for what a call has left to do, with the pipe's settings of now: it may have been restored since."""
    attachment = attachment_of(pipe)
    if attachment is None:
        yield
        return
    before = attachment.last
    with attachment.run_of_call(pipe, generator=generator) as session:
        yield
    # The loop had run in the call. (If it ran in a block of its own, that has a record.)
    if not session.record.letters and attachment.last is session.record:
        attachment.last = before


def _revive(base: Any, settings: Settings | None = None, strides: Any = None, pool: Pool | None = None) -> object:
    pipe = base.__new__(base)
    if settings is not None:
        _enter(pipe, Attachment(settings, strides, pool))
    return pipe


def _planned_steps(pipe: Any, scheduler: str) -> int | None:
    """Steps of the current pipeline call, which diffusers' pipelines store right before their loop."""
    noted = getattr(pipe, "_num_timesteps", None)
    return noted if noted is not None else scheduled_steps(pipe, scheduler)


def _length(pipe: Any, scheduler: str) -> int | None:
    """Steps of a whole schedule; image to image, and a base with a refiner, run through a part of it. None: unknown."""
    own, count = getattr(pipe, scheduler), scheduled_steps(pipe, scheduler)
    asked = getattr(own, "num_inference_steps", 0)
    if getattr(own, "custom_timesteps", False):  # set by their list, which leaves `num_inference_steps` as it was
        return count
    if asked is None:  # never set: its timesteps are those of training
        return None
    return max((steps for steps in (asked, count) if isinstance(steps, int) and steps), default=None)


def scheduled_steps(pipe: Any, scheduler: str) -> int | None:
    """Steps that the pipe's attribute `scheduler` is set to, or None if that has no timesteps."""
    timesteps = getattr(getattr(pipe, scheduler), "timesteps", None)
    return None if timesteps is None else len(timesteps)
