"""How graphs run: the user's arguments, checked, and what they mean on a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch

from ..errors import InvalidSetting
from ..forwards.join import JoinFunction, fused_join, reference_join
from ..forwards.join_shape import JoinShape
from ..packages.store import Packages
from ..values import as_items, as_word, auto_or_bool, is_a, is_one_of, shown
from .backends import CaptureBackend, CudaBackend
from .options import by_inductor, captures_itself, check_options, cuda_options, options_of, own_copy
from .tuning import Judge, judge_of

HAS_TRITON = find_spec("triton") is not None  # looked for, not imported


@dataclass(frozen=True)
class GraphSettings:
    """How graphs run.

    compile: "auto" (on CUDA only), True, False, "regional", or a dict of torch.compile arguments.
    cuda_graphs: "auto" or True (on CUDA only), False, or a factory of `CaptureBackend` (tests).
    kernels: "auto" (joins measured to be faster with the kernels on this GPU), True (all joins), False, or a `Judge`
    (tests).
    packages: graphs compiled ahead of time, which run instead where they fit.
    """

    compile: Any = "auto"
    cuda_graphs: Any = "auto"
    kernels: Any = "auto"
    packages: Packages | None = None
    _plain: dict[torch.device, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compile = as_items(self.compile)
        if compile is not None:
            object.__setattr__(self, "compile", options_of(compile))
            check_options(own_copy(self.compile))
        elif self.compile is True or is_one_of(self.compile, ("regional",)):
            check_options({})
        elif self.compile is not False and not is_one_of(self.compile, ("auto",)):
            raise InvalidSetting(
                'compile must be "auto", True, False, "regional" or a dict of torch.compile arguments, '
                f"got {shown(self.compile)}."
            )
        if compile is None and type(self.compile) is not bool:
            object.__setattr__(self, "compile", as_word(self.compile))
        if not callable(self.cuda_graphs):
            object.__setattr__(self, "cuda_graphs", auto_or_bool("cuda_graphs", self.cuda_graphs))
        if self.packages is not None and compile is not None and captures_itself(self.compile):
            raise InvalidSetting(
                f"compiled= and compile={shown(self.compile)}: torch captures only what it compiles itself, so "
                "packages would run uncaptured. Leave capturing to stepcache."
            )
        if not is_a(self.kernels, Judge):
            object.__setattr__(self, "kernels", auto_or_bool("kernels", self.kernels))
        if self.kernels is True and not HAS_TRITON:
            raise InvalidSetting('kernels=True needs Triton, which is not installed here. Leave it at "auto".')
        if self.cuda_graphs is True and not torch.cuda.is_available():
            raise InvalidSetting('cuda_graphs=True, but torch sees no CUDA device here. Leave it at "auto".')

    def is_plain(self, device: torch.device) -> bool:
        """Whether nothing is compiled or captured on `device`. Asked at each call, so it is worked out once."""
        if device not in self._plain:
            graphs = self.compile_options(device) is not None or self.backend(device) is not None
            self._plain[device] = self.packages is None and not graphs
        return self._plain[device]

    def compile_options(self, device: torch.device) -> dict[str, Any] | None:
        """Arguments of torch.compile for graphs on `device`; None if they run eager."""
        if self.compile is False or (self.compile == "auto" and device.type != "cuda"):
            return None
        if self.compile == "auto" and not HAS_TRITON:
            return None  # Inductor generates Triton for GPUs
        options = own_copy(self.compile) if isinstance(self.compile, dict) else {}
        inductor = by_inductor(options)
        if device.type == "cuda" and inductor and not {"mode", "options"} & set(options):
            options["options"] = cuda_options()
        if options.get("mode") == "max-autotune" and inductor:
            options["mode"] = "max-autotune-no-cudagraphs"  # stepcache captures, or nobody does
        return options

    def package_options(self, device: torch.device) -> dict[str, Any]:
        """Inductor's options for packages: those of graphs on `device`, or the defaults if these run eager.

        Imports Inductor. InvalidSetting if another backend compiles.
        """
        defaults = GraphSettings(compile=True).compile_options(device) or {}
        options = self.compile_options(device) or defaults
        if not by_inductor(options):
            raise InvalidSetting(
                f"Packages are compiled by Inductor, and this pipe's graphs by {shown(options['backend'])}. Accelerate "
                "it without a backend in `compile`."
            )
        found = dict(options.get("options") or {})
        if "mode" in options:
            from torch._inductor import list_mode_options

            found = {**list_mode_options(options["mode"]), **found}
        found.pop("triton.cudagraphs", None)  # stepcache captures
        return found

    def joins_ahead(self, device: torch.device, decided: frozenset[JoinShape]) -> frozenset[JoinShape] | None:
        """The joins that run on the Triton ops in packages; None: all. decided: those of this pipe's own graphs.

        A pipe that runs eager has decided nothing. Its packages run compiled and captured, by the verdicts there are.
        """
        if self.kernels is True:
            return None
        if self.kernels is False or self.judge(device) is not None:
            return decided
        judge = GraphSettings().judge(device)
        return frozenset() if judge is None else judge.verdicts.for_triton

    def judge(self, device: torch.device) -> Judge | None:
        """Decides which joins on `device` run on the Triton ops; None if there is nothing to decide.

        Verdicts hold for joins that Inductor compiles and a CUDA graph replays. Without a graph the host launches the
        ops one by one, which takes longer than running them.
        """
        if isinstance(self.kernels, Judge):
            return self.kernels
        options = self.compile_options(device)
        if self.kernels != "auto" or device.type != "cuda" or not HAS_TRITON:
            return None
        if options is None or self.compile == "regional":
            return None
        captured = self.backend(device) is not None or captures_itself(options)
        return judge_of(device) if captured and by_inductor(options) else None

    def join(self, wanted: frozenset[JoinShape]) -> JoinFunction:
        """How graphs join. wanted: the joins to run on the Triton ops."""
        if self.kernels is True:
            return fused_join(lambda shape: True)
        return fused_join(wanted.__contains__) if wanted else reference_join

    def backend(self, device: torch.device) -> CaptureBackend | None:
        """A capture backend for one bucket on `device`; None if stepcache does not capture there."""
        if callable(self.cuda_graphs):
            return self.cuda_graphs()
        by_torch = isinstance(self.compile, dict) and captures_itself(self.compile)
        return None if self.cuda_graphs is False or by_torch or device.type != "cuda" else CudaBackend()
