"""A U-Net's graphs: which inputs share a bucket, and how a bucket's full and partial programs are made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards.calls import written_by_processors
from ..forwards.guidance import Compute, steps_of
from ..forwards.join import JoinFunction, reference_join
from ..forwards.join_shape import JoinShape
from ..reuse.cut import Cut
from ..reuse.predict import HOLD, Predictor
from .bucket import Bucket, Buckets, key_of
from .capture import Capture
from .compiled import Compilations
from .fallback import Fallback
from .freshness import Freshness
from .jobs import Jobs, graph_of, runs_on
from .kept import Kept
from .packaged import Packaged, Source
from .program import Program, compiled
from .progress import Costs
from .regional import regional, repeated_blocks
from .settings import GraphSettings
from .tuning import Judge, calls_of_joins, tuning_wanted


class UNetGraphs:
    """Buckets for one family of forwards, one cut and one predictor, for one run at a time.

    max_buckets: of how many sizes they are held. compilations: shared by all runs of a pipe.
    """

    def __init__(
        self,
        family: ModuleType,
        cut: Cut,
        settings: GraphSettings,
        max_buckets: int = 4,
        predictor: Predictor = HOLD,
        compilations: Compilations | None = None,
    ) -> None:
        self.family, self.cut, self.settings, self.predictor = family, cut, settings, predictor
        self.compilations = Compilations() if compilations is None else compilations
        self.fallback, self.costs = Fallback("the U-Net", "pipe.unet"), Costs()
        self.buckets = Buckets(max_buckets, self.fallback.say_once)
        self._packaged_steps: dict[Hashable, Compute] = {}

    def bucket(self, inputs: dict[str, Any], reuse_guidance: bool) -> Bucket:
        """The bucket of these inputs. reuse_guidance: their batch is [unconditional, conditional]."""
        key, sample = self._key(inputs, reuse_guidance), inputs["sample"]
        bucket = self.buckets.get(key, functools.partial(self._make, key, inputs, reuse_guidance), sample.shape)
        if not written_by_processors(inputs.get("cross_attention_kwargs")):
            bucket.note(inputs, reuse_guidance)
        return bucket

    def begin_run(self, unet: nn.Module, bucket: Bucket, inputs: dict[str, Any], reuse_guidance: bool) -> None:
        """Called before a run's first call in `bucket`. A warm-up measures joins that have no verdict yet."""
        judge = self.settings.judge(inputs["sample"].device)
        if bucket.is_plain and judge is None:
            return
        self.fallback.look(unet)
        if bucket.is_packaged:  # which joins run on the ops was settled when it was compiled
            return
        if judge is not None and tuning_wanted.get() and not self.fallback.hooks and not unet.training:
            self._tune(judge, unet, bucket, inputs, reuse_guidance)

    def look_again(self) -> None:
        """Called in the middle of a run, where layers of the U-Net may have got or lost hooks."""
        if not all(bucket.is_plain for bucket in self.buckets.held.values()):
            self.fallback.look_again()

    def run(self, name: str, unet: nn.Module, bucket: Bucket, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The output of program "full" or "partial" for these inputs. kept: that of `slot`, written or read."""
        if not bucket.is_plain and (self.fallback.is_eager(unet) or self._is_written(inputs)):
            return bucket.eager[name](unet, inputs, kept)
        return bucket.run(name, unet, inputs, kept, slot)

    def run_eager(
        self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, reuse_guidance: bool, at_join: Callable[[], None]
    ) -> Tensor:
        """The output of the full program, eager. Calls `at_join` at each join; writes `kept`."""

        def join(resnet: nn.Module, hidden: Any, skip: Tensor, temb: Tensor) -> Tensor:
            at_join()
            return reference_join(resnet, hidden, skip, temb)

        full, _ = self._steps(join, reuse_guidance)
        return Program("full step", full)(unet, inputs, kept)

    def blocks(self, unet: nn.Module) -> list[nn.Module]:
        """The repeated blocks to be compiled one by one."""
        return repeated_blocks(unet) if self.settings.compile == "regional" else []

    def _is_written(self, inputs: dict[str, Any]) -> bool:
        """Whether processors may write to an input, of which graphs see a copy."""
        name = written_by_processors(inputs.get("cross_attention_kwargs"))
        if name:
            self.fallback.say_once(
                f"cross_attention_kwargs[{name!r}] may be written to by attention processors, which a graph cannot do: "
                "the U-Net runs eager."
            )
        return bool(name)

    def _key(self, inputs: dict[str, Any], reuse_guidance: bool) -> Hashable:
        sample: Tensor = inputs["sample"]
        if self.settings.is_plain(sample.device) or self._is_written(inputs):
            # Only the feature is static, and its shape, dtype and device follow from the sample's.
            return sample.shape, sample.dtype, sample.device, sample.stride(), reuse_guidance
        return key_of(inputs, sample.device), reuse_guidance

    def _kept(self, batch: int, reuse_guidance: bool) -> Kept:
        predictor = self.predictor
        apart = predictor.apart and batch % 2 == 0 and not reuse_guidance
        return Kept(1 + reuse_guidance, predictor.order, not predictor.holds, apart)

    def _make(self, key: Hashable, inputs: dict[str, Any], reuse_guidance: bool) -> Bucket:
        sample: Tensor = inputs["sample"]
        judge = self.settings.judge(sample.device)
        wanted = self.compilations.joins.setdefault(key, frozenset() if judge is None else judge.verdicts.for_triton)
        label = _label(sample)
        eager = self._programs(self._steps(reference_join, reuse_guidance), label)
        make_kept = functools.partial(self._kept, sample.shape[0], reuse_guidance)
        bucket = Bucket(eager, None, eager, make_kept)
        self._fill(bucket, key, inputs, reuse_guidance, wanted)
        return bucket

    def _fill(
        self,
        bucket: Bucket,
        key: Hashable,
        inputs: dict[str, Any],
        reuse_guidance: bool,
        wanted: frozenset[JoinShape],
    ) -> None:
        """Give the bucket its programs and capture. wanted: the joins to run on the Triton ops."""
        settings, device, label = self.settings, inputs["sample"].device, _label(inputs["sample"])
        options, join, backend = settings.compile_options(device), settings.join(wanted), settings.backend(device)
        steps = full, partial = self._steps(join, reuse_guidance)
        if options is not None:
            run = regional if settings.compile == "regional" else compiled
            shared = options, self.costs, self.compilations, (key, wanted)
            steps = run(full, f"full graph {label}", *shared), run(partial, f"partial graph {label}", *shared)
        if settings.packages is not None and not self._is_written(inputs):
            source = Source(settings.packages, self.fallback.say_once, compiles=options is not None)
            steps = self._packaged(source, steps, (key, wanted), inputs, reuse_guidance)
        bucket.is_packaged = any(isinstance(step, Packaged) for step in steps)
        if options is None and join is reference_join and backend is None and not bucket.is_packaged:
            bucket.programs, bucket.capture = bucket.eager, None
            return
        bucket.programs = self._programs(steps, label)
        bucket.capture = None if backend is None else Capture(backend, device, self.costs, Freshness(self.fallback))

    def _packaged(
        self, source: Source, steps: tuple[Compute, Compute], key: Hashable, inputs: dict[str, Any], reuse: bool
    ) -> tuple[Compute, Compute]:
        """Both steps from packages, where there are some that may fit."""
        graph, label = self.graph(reuse), _label(inputs["sample"])

        def wrapped(name: str, compute: Compute, *left_out: Any) -> Compute:
            # Kept when its bucket is dropped: when that comes back, the model need not be looked at again.
            if (name, key) not in self._packaged_steps:
                found = source.wrap(name, f"{name} graph {label}", compute, graph, inputs, *left_out)
                self._packaged_steps[name, key] = found
            return self._packaged_steps[name, key]

        return wrapped("full", steps[0]), wrapped("partial", steps[1], self._deep)

    def graph(self, reuse: bool) -> dict[str, Any]:
        """The settings that packages are for, as in their manifest. reuse: of guidance."""
        return graph_of(self.cut.branch, reuse, self.settings.kernels)

    def add_jobs(self, unet: nn.Module, jobs: Jobs) -> None:
        """Add what packages of the buckets that have run are made from."""
        for key, bucket in list(self.buckets.held.items()):  # another thread may run
            kept = bucket.slots[0] if bucket.slots else None
            if kept is None or not kept.is_written or not runs_on(unet, bucket):
                continue
            joins = self.settings.joins_ahead(bucket.device, self.compilations.joins[key])
            options = self.settings.package_options(bucket.device)
            for inputs, reuse in list(bucket.examples.values()):
                label, graph = _label(inputs["sample"]), self.graph(reuse)
                shared, how = (bucket.device, options, graph, inputs), (joins, self.cut.branch, reuse)
                jobs.add(unet, "full", f"full graph {label}", *shared, (), (), *how)
                jobs.add(unet, "partial", f"partial graph {label}", *shared, kept.current, self._deep(unet), *how)

    def _deep(self, unet: nn.Module) -> Iterable[nn.Module]:
        """The modules that a partial step does not run."""
        return self.family.deep_modules(unet, cut=self.cut)

    def _steps(self, join: JoinFunction, reuse_guidance: bool) -> tuple[Compute, Compute]:
        return steps_of(self.family, self.cut, join, reuse_guidance)

    def _programs(self, steps: tuple[Compute, Compute], label: str) -> dict[str, Program]:
        full, partial = steps
        return {
            "full": Program(f"full graph {label}", full),
            "partial": Program(f"partial graph {label}", partial, reads=True, left_out=self._deep),
        }

    def _tune(
        self, judge: Judge, unet: nn.Module, bucket: Bucket, inputs: dict[str, Any], reuse_guidance: bool
    ) -> None:
        """Measure joins that have no verdict yet, and make the bucket's graphs again if that changes them."""
        device = inputs["sample"].device
        try:
            calls = calls_of_joins(
                functools.partial(self._steps, reuse_guidance=reuse_guidance),
                self._kept(inputs["sample"].shape[0], reuse_guidance), self.predictor, unet, inputs,
            )  # fmt: skip
        except torch.OutOfMemoryError:  # this runs eager, which takes more memory than the graphs
            self.fallback.say_once("Not enough memory to find the joins of this size: they run by the known verdicts.")
            return
        # `stepcache tune` measures with a pipe that runs eager, for pipes that compile.
        options = self.settings.compile_options(device) or GraphSettings().compile_options(device) or {}
        judge.judge(calls, options, self.costs)
        shapes = {call.shape for call in calls}
        wanted = judge.verdicts.for_triton & shapes
        key = self._key(inputs, reuse_guidance)
        # Keep the graphs if nothing changes for the joins of this bucket.
        if wanted != self.compilations.joins[key] & shapes:
            bucket.free()
            self.compilations.joins[key] = wanted
            self._fill(bucket, key, inputs, reuse_guidance, wanted)


def _label(sample: Tensor) -> str:
    return "x".join(map(str, sample.shape))
