"""The two graphs of each bucket, and how they are run: eager, compiled, captured.

The only room that names torch.compile and CUDA graphs. A `Plan` belongs to one U-Net and one cut; it says which inputs
share a bucket, and makes each bucket's `BucketGraphs`. Nothing here knows steps or schedules.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..autocast import autocasts
from ..errors import InvalidSetting
from ..forwards.join import JoinFunction, fused_join, reference_join
from ..forwards.join_shape import JoinShape
from ..reuse.cut import Cut
from ..reuse.predict import HOLD, Predictor
from .backends import CaptureBackend, CudaBackend
from .buffers import Bucket, Kept
from .captured import CapturedGraphs
from .compiled import CompiledRunner, Programs, RegionalRunner, captures_itself, check_options, cuda_options, own_copy
from .costs import Costs
from .direct import DirectGraphs, Runner
from .eager import EagerRunner
from .tensors import tensors_of
from .tuning import Judge, judge_of, sites_of, tuning_wanted

logger = logging.getLogger("stepcache")

HAS_TRITON = find_spec("triton") is not None  # looked for, not imported


@dataclass(frozen=True)
class GraphSettings:
    """How graphs are run.

    compile: "auto" (on CUDA only), True, False, "regional", or a dict of torch.compile arguments.
    cuda_graphs: "auto" and True (on CUDA only), False, or a factory of `CaptureBackend` (tests).
    kernels: "auto" (the joins that were measured to be faster with them on this GPU), True (all joins), False, or a
    `Judge` (tests).
    """

    compile: Any = "auto"
    cuda_graphs: Any = "auto"
    kernels: Any = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.compile, dict):
            object.__setattr__(self, "compile", own_copy(self.compile))
            check_options(own_copy(self.compile))
        elif self.compile is True or self.compile == "regional":
            check_options({})
        elif self.compile is not False and self.compile != "auto":
            raise InvalidSetting(
                'compile must be "auto", True, False, "regional" or a dict of torch.compile arguments, '
                f"got {self.compile!r}."
            )
        if not (isinstance(self.cuda_graphs, bool) or self.cuda_graphs == "auto" or callable(self.cuda_graphs)):
            raise InvalidSetting(f'cuda_graphs must be "auto", True or False, got {self.cuda_graphs!r}.')
        if not (isinstance(self.kernels, (bool, Judge)) or self.kernels == "auto"):
            raise InvalidSetting(f'kernels must be "auto", True or False, got {self.kernels!r}.')
        if self.kernels is True and not HAS_TRITON:
            raise InvalidSetting('kernels=True needs Triton, which is not installed here. Leave it at "auto".')
        if self.cuda_graphs is True and not torch.cuda.is_available():
            raise InvalidSetting('cuda_graphs=True, but torch sees no CUDA device here. Leave it at "auto".')

    def compile_options(self, device: torch.device) -> dict[str, Any] | None:
        """Arguments of torch.compile for graphs on `device`; None where they run eager."""
        if self.compile is False or (self.compile == "auto" and device.type != "cuda"):
            return None
        if self.compile == "auto" and not HAS_TRITON:
            return None  # Inductor's code for a GPU is Triton
        options = own_copy(self.compile) if isinstance(self.compile, dict) else {}
        inductor = options.get("backend", "inductor") == "inductor"
        if device.type == "cuda" and inductor and not {"mode", "options"} & set(options):
            options["options"] = cuda_options()
        if options.get("mode") == "max-autotune" and inductor:
            options["mode"] = "max-autotune-no-cudagraphs"  # captured by hand, or not at all
        return options

    def judge(self, device: torch.device) -> Judge | None:
        """Who decides which joins on `device` run on the Triton ops; None where nothing is to be decided.

        What is known holds for joins that Inductor compiles and a CUDA graph replays. Without a graph the host would
        launch the ops one by one, and take longer for it than they do.
        """
        if isinstance(self.kernels, Judge):
            return self.kernels
        options = self.compile_options(device)
        if self.kernels != "auto" or device.type != "cuda" or not HAS_TRITON:
            return None
        if options is None or self.compile == "regional":
            return None
        captured = self.backend(device) is not None or captures_itself(options)
        return judge_of(device) if captured and options.get("backend", "inductor") == "inductor" else None

    def join(self, wanted: frozenset[JoinShape]) -> JoinFunction:
        """How graphs join. wanted: the joins that are decided to run on the Triton ops."""
        if self.kernels is True:
            return fused_join(lambda shape: True)
        return fused_join(wanted.__contains__) if wanted else reference_join

    def backend(self, device: torch.device) -> CaptureBackend | None:
        """A capture backend for one bucket on `device`; None where nothing is captured by hand."""
        if callable(self.cuda_graphs):
            return self.cuda_graphs()
        by_torch = isinstance(self.compile, dict) and captures_itself(self.compile)
        return None if self.cuda_graphs is False or by_torch or device.type != "cuda" else CudaBackend()


class Plan:
    """Graphs for one family of forwards, one cut, and one way to predict what is not computed.

    programs: what has been compiled, which plans of one pipe share.
    """

    def __init__(
        self,
        family: ModuleType,
        cut: Cut,
        settings: GraphSettings,
        predictor: Predictor = HOLD,
        programs: Programs | None = None,
    ) -> None:
        self.family, self.cut, self.settings, self.predictor = family, cut, settings, predictor
        self.programs = Programs() if programs is None else programs
        self.costs = Costs()
        self.active: RegionalRunner | None = None
        self._said: set[str] = set()
        self._plain: dict[torch.device, bool] = {}

    def key(self, inputs: dict[str, Any]) -> Hashable:
        """Inputs with equal keys share a bucket."""
        sample: Tensor = inputs["sample"]
        plain = self._plain.get(sample.device)
        if plain is None:
            plain = self.settings.compile_options(sample.device) is None
            plain = self._plain[sample.device] = plain and self.settings.backend(sample.device) is None
        if plain:
            # Nothing is static but the feature, whose shape, dtype and device follow from the sample's.
            return sample.shape, sample.dtype, sample.device, sample.stride()
        device = sample.device.type
        autocast = torch.get_autocast_dtype(device) if autocasts(device) else None
        return signature(inputs), torch.is_inference_mode_enabled(), autocast

    def bucket(self, key: Hashable, inputs: dict[str, Any], reuse_guidance: bool) -> Bucket[BucketGraphs]:
        """A new bucket for such inputs, of that key. reuse_guidance: their batch is [unconditional, conditional]."""
        graphs = BucketGraphs(self, key, inputs["sample"], reuse_guidance)
        return Bucket(
            graphs, functools.partial(Kept, 1 + reuse_guidance, self.predictor.order, not self.predictor.holds)
        )

    def blocks(self, unet: nn.Module) -> list[nn.Module]:
        """The repeated blocks to be compiled one by one, where compile="regional"."""
        if self.settings.compile != "regional":
            return []
        # U-Nets for video do not tell theirs.
        names = getattr(unet, "_repeated_blocks", None) or ("BasicTransformerBlock", "TemporalBasicTransformerBlock")
        return [module for module in unet.modules() if type(module).__name__ in names]

    def run_block(self, block: nn.Module, stock: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a repeated block: compiled inside of a graph that is run regionally, else stock."""
        forward = getattr(stock, "__func__", None)
        if self.active is None or forward is None:
            return stock(*args, **kwargs)
        return self.active.block(block, forward, args, kwargs)

    def say_once(self, reason: str) -> None:
        """Warn, once a pipe, that something is not run as asked."""
        if reason not in self._said:
            self._said.add(reason)
            logger.warning(reason)


class BucketGraphs:
    """The full and the partial graph of one bucket."""

    def __init__(self, plan: Plan, key: Hashable, sample: Tensor, reuse_guidance: bool) -> None:
        self.plan, self._key, self._device, self._reuse_guidance = plan, key, sample.device, reuse_guidance
        self._label = "x".join(map(str, sample.shape))
        # What everything falls back to: through the modules alone, which hooks may sit on.
        self.eager = DirectGraphs(EagerRunner(plan.family, plan.cut, reuse_guidance=reuse_guidance))
        self._judge = plan.settings.judge(sample.device)
        self._hooks = ""
        known = frozenset() if self._judge is None else self._judge.verdicts.for_triton
        self._make(plan.programs.joins.setdefault(key, known))

    def _make(self, wanted: frozenset[JoinShape]) -> None:
        """The graphs, none of them compiled or captured yet. wanted: the joins that are to run on the Triton ops."""
        plan, device, label = self.plan, self._device, self._label
        options, join = plan.settings.compile_options(device), plan.settings.join(wanted)
        if options is None:
            runner: Runner = EagerRunner(plan.family, plan.cut, join, self._reuse_guidance)
        else:
            kind = RegionalRunner if plan.settings.compile == "regional" else CompiledRunner
            runner = kind(plan, join, options, label, self._reuse_guidance, (self._key, wanted))
        backend = plan.settings.backend(device)
        self.captured: CapturedGraphs | None = None
        if backend is not None:
            deep = functools.partial(plan.family.deep_modules, cut=plan.cut)
            self.captured = CapturedGraphs(runner, backend, deep, device, label, plan.costs)
        self.direct = DirectGraphs(runner)
        self._plain = self.captured is None and join is reference_join and options is None

    def begin_run(self, unet: nn.Module, inputs: dict[str, Any]) -> None:
        """Called before the first call of a run, which has these inputs: look for hooks, which may have come or gone.

        In a warm-up, joins that nothing is known about are measured.
        """
        if not self._plain or self._judge is not None:
            self._hooks = hooks_on(unet)
        if self._judge is not None and tuning_wanted.get() and not self._hooks and not unet.training:
            self._tune(self._judge, unet, inputs)

    def _tune(self, judge: Judge, unet: nn.Module, inputs: dict[str, Any]) -> None:
        plan = self.plan
        try:
            sites = sites_of(plan, unet, inputs, self._reuse_guidance)
        except torch.OutOfMemoryError:  # eager, as this is, a U-Net takes more memory than its graphs
            plan.say_once("There is no memory to look for the joins of this size: they run by what is known of them.")
            return
        # A pipe that runs eager measures for those that do not (`stepcache tune`).
        options = plan.settings.compile_options(self._device) or GraphSettings().compile_options(self._device) or {}
        judge.judge(sites, options, plan.costs)
        shapes = {site.shape for site in sites}
        wanted = judge.verdicts.for_triton & shapes
        # Where nothing changes for the joins of this bucket, its graphs stay what they are.
        if wanted != plan.programs.joins[self._key] & shapes:
            self.free()
            plan.programs.joins[self._key] = wanted
            self._make(wanted)

    def full(self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The whole U-Net; `kept`, of slot `slot`, is written. Returns the output."""
        return self._graphs(unet).full(unet, inputs, kept, slot)

    def partial(self, unet: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The shallow part on `kept`, of slot `slot`. Returns the output."""
        return self._graphs(unet).partial(unet, inputs, kept, slot)

    def _graphs(self, unet: nn.Module) -> CapturedGraphs | DirectGraphs:
        """Who runs this call."""
        if self._plain:
            return self.eager
        if unet.training:
            self.plan.say_once("The U-Net is in training mode: its graphs run eager. Call pipe.unet.eval().")
            return self.eager
        if torch.is_grad_enabled():
            self.plan.say_once("Gradients are enabled: graphs run eager. Use torch.no_grad() around the loop.")
            return self.eager
        if self._hooks == "inside":
            self.plan.say_once("Hooks that offload, cast or align devices sit on the U-Net's layers: graphs run eager.")
            return self.eager
        if self._hooks == "forward":
            self.plan.say_once("Forward hooks sit on the U-Net's layers: graphs run eager, and the hooks at each call.")
            return self.eager
        if self.captured is None or self.captured.failed:
            return self.direct
        if self._hooks:
            self.plan.say_once("Offloading hooks move the U-Net between runs: graphs are not captured.")
            return self.direct
        return self.captured

    def free(self) -> None:
        """Give the captured graphs' memory back."""
        if self.captured is not None:
            self.captured.free()

    @property
    def nbytes(self) -> int:
        """Bytes of static inputs and output."""
        return 0 if self.captured is None else self.captured.nbytes


def hooks_on(model: nn.Module) -> str:
    """Which hooks a graph of a U-Net or a VAE would leave out: "" none, "outside" offloading hooks of accelerate or
    diffusers on the model, "inside" such hooks on its layers (or ones that align devices or cast), "forward" torch's
    own hooks on layers.
    """
    where = ""
    for module in model.modules():
        values = vars(module)  # asked of a module itself, a missing attribute costs a microsecond
        if "_hf_hook" in values or getattr(values.get("_diffusers_hook"), "hooks", None):
            if module is not model:
                return "inside"
            where = "outside"
        if module is not model and (values.get("_forward_hooks") or values.get("_forward_pre_hooks")):
            return "forward"
    return where


def signature(value: Any) -> Hashable:
    """Shapes, dtypes, devices and strides of all tensors in `value`, and all else as it is."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.stride()
    if isinstance(value, dict):
        return tuple((key, signature(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(signature(item) for item in value)
    return value if isinstance(value, Hashable) else _Same(value)


class _Same:
    """Equal to the very same object only: what cannot be compared by value is another input each time it is another."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


__all__ = ["BucketGraphs", "GraphSettings", "Plan", "hooks_on", "signature", "tensors_of"]
