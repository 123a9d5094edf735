"""Plans: what `stepcache calibrate` found for one model, scheduler and number of steps, as a JSON file.

A plan says which steps are full, which branch partial steps run, how they predict the feature, and whether they reuse
guidance. It also records what it was made for, and the figures that were measured with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting
from ..reuse.predict import Fitted, Line, Predictor, Weights
from ..reuse.schedule import Schedule
from ..values import as_int
from .fingerprints import config_hash, same_weights, sampling, sampling_differs, weight_sample

FORMAT = 1

Table = Mapping[tuple[int, int, tuple[int, ...]], Weights]


@dataclass(frozen=True)
class MadeFor:
    """What a plan was made for. unet: its class. config, weights: from fingerprints.py. guidance is only recorded."""

    unet: str
    config: str
    weights: tuple[float, ...] = field(repr=False)
    scheduler: dict[str, Any]
    guidance: float

    @classmethod
    def of(cls, pipe: Any, guidance: float) -> MadeFor:
        """What a plan is made for on `pipe` with its present U-Net and scheduler."""
        unet = pipe.unet
        weights = tuple(round(value, 6) for value in weight_sample(unet))
        return cls(type(unet).__name__, config_hash(unet), weights, sampling(pipe.scheduler), guidance)

    def not_the_model(self, unet: Any) -> str:
        """Why a U-Net is not the plan's, or "" if it is. Reads weights, so the host waits for the device."""
        if type(unet).__name__ != self.unet or config_hash(unet) != self.config:
            return f"it was made for a {self.unet} with another config than this {type(unet).__name__}"
        if not same_weights(self.weights, weight_sample(unet)):
            return "this U-Net has the same config but other weights (another model, or a fine-tune of that one)"
        return ""

    def not_the_scheduler(self, scheduler: Any) -> str:
        """Why a scheduler is not the plan's, or "" if it is."""
        here = sampling(scheduler)
        differs = sampling_differs(self.scheduler, here)
        told = ", ".join(f"{name} {self.scheduler[name]!r} and not {here[name]!r}" for name in differs)
        return f"it was made for a scheduler with {told}" if differs else ""


@dataclass(frozen=True)
class Figures:
    """What was measured on images: mean PSNR (dB) and mean SSIM against the original's, and the speed-up in MACs."""

    what: str
    speedup: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Plan:
    """One way to run, for `accelerate(pipe, plan=...)`.

    mask: a letter for each iteration of the loop, F or P. branch, guidance: as in `accelerate`. order, table: fitted
    weights (predict.Fitted); with an empty table the line alone predicts. damping: the line's, for steps that the table
    lacks. speedup: the original's MACs over the plan's, in the U-Net. figures: on held-out prompts, first this plan's,
    then those of DeepCache's algorithm at the same or lower cost, then (if any) at the next higher cost. made_with:
    versions, date, prompts, seeds, command.
    """

    made_for: MadeFor
    mask: str
    branch: int
    guidance: str
    order: int
    damping: float
    table: Table = field(repr=False)
    speedup: float
    figures: tuple[Figures, ...] = ()
    made_with: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        Schedule.explicit(self.mask)
        if as_int(self.branch) is None or self.branch < 0 or self.guidance not in ("both", "reuse"):
            raise InvalidSetting(
                f'A plan has a branch of at least 0 and guidance "both" or "reuse", got {self.branch!r} and '
                f"{self.guidance!r}."
            )
        if self.order not in (1, 2, 3) or not 0 <= self.damping <= 1 or (self.damping and self.order == 1):
            raise InvalidSetting(
                f"A plan has an order of 1 to 3 and a damping of 0 to 1 (0 at order 1), got {self.order!r} and "
                f"{self.damping!r}."
            )
        for (value, step, full_steps), weights in self.table.items():
            if value not in (0, 1) or len(weights) != len(full_steps) or not 1 <= len(full_steps) <= self.order:
                raise InvalidSetting(f"A plan's weights at step {step} do not fit: {weights} of steps {full_steps}.")

    @property
    def schedule(self) -> Schedule:
        """Which steps are full."""
        return Schedule.explicit(self.mask)

    @property
    def predictor(self) -> Predictor:
        """How partial steps predict the feature."""
        return Fitted(self.table, self.order, Line(self.damping)) if self.table else Line(self.damping)

    def check(self, scheduler: Any, unet: Any) -> None:
        """Raise InvalidSetting if it was made for another scheduler or U-Net. unet: None if known to be the plan's."""
        reason = self.made_for.not_the_scheduler(scheduler)
        if not reason and unet is not None:
            reason = self.made_for.not_the_model(unet)
        if reason:
            raise InvalidSetting(
                f"This plan does not fit this pipe: {reason}. Calibrate one for it (stepcache calibrate), or use it "
                "anyway with accelerate(..., adapt=True); its figures do not hold then."
            )

    def remarks(self, steps: int | None, guidance: object) -> Iterator[str]:
        """Warnings for a run of `steps` at that guidance scale; None and tensors are not checked."""
        if steps is not None and steps != len(self.mask):
            yield (
                f"A plan for {len(self.mask)} steps in a run of {steps}: its full steps are stretched to "
                f"{stretched(self.mask, steps)}, and a line damped by {self.damping:g} replaces its weights."
            )
        if isinstance(guidance, (int, float)) and guidance != self.made_for.guidance:
            yield (
                f"A plan that was calibrated with guidance scale {self.made_for.guidance:g} in a run with "
                f"{guidance:g}: it works, but its figures do not hold for this run."
            )

    def for_steps(self, steps: int | None, adapt: bool) -> tuple[Schedule, Predictor]:
        """Schedule and predictor for a run of `steps` iterations. Raises InvalidSetting if it is not the plan's number.

        adapt: for another number, stretch the mask to it and use the line instead of the fitted weights.
        """
        if steps == len(self.mask):
            return self.schedule, self.predictor
        if not adapt or steps is None:
            known = "of an unknown number of steps" if steps is None else f"of {steps} steps"
            raise InvalidSetting(
                f"This plan is for {len(self.mask)} steps of the loop, but was used in a run {known}. Run that many, "
                "calibrate a plan for this number, or let accelerate(..., adapt=True) stretch it."
            )
        return Schedule.explicit(stretched(self.mask, steps)), Line(self.damping)

    def to_json(self) -> str:
        """The file's text."""
        body = asdict(self) | {"format": FORMAT}
        body["table"] = [
            {"value": value, "step": step, "full": full_steps, "weights": [round(w, 7) for w in weights]}
            for (value, step, full_steps), weights in self.table.items()
        ]
        order = ["format", *(f.name for f in fields(self) if f.name not in ("table", "made_for")), "made_for", "table"]
        lines = [f"{json.dumps(key)}: {_dump(body[key])}" for key in order]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan. Raises InvalidSetting, with the reason, if the file is not one; OSError if it cannot be read."""
        try:
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(body, dict) or body.get("format") != FORMAT:
                found = body.get("format") if isinstance(body, dict) else None
                raise InvalidSetting(f"its format is {found!r}, and this version reads {FORMAT}")
            table = {
                (e["value"], e["step"], tuple(e["full"])): tuple(float(w) for w in e["weights"]) for e in body["table"]
            }
            made_for = body["made_for"]
            return cls(
                made_for=MadeFor(**{**made_for, "weights": tuple(made_for["weights"])}),
                table=table,
                figures=tuple(Figures(**each) for each in body["figures"]),
                **{name: body[name] for name in ("mask", "branch", "guidance", "order", "damping", "speedup")},
                made_with=body["made_with"],
            )
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it lacks {error}" if type(error) is KeyError else error
            raise InvalidSetting(f"{os.fspath(path)} is no plan of `stepcache calibrate`: {reason}.") from error


def plan_of(plan: object) -> Plan:
    """The plan for `accelerate(plan=...)`: a Plan or the path of one. Raises InvalidSetting for anything else."""
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, (str, os.PathLike)):
        return Plan.read(plan)
    raise InvalidSetting(f"plan must be a file of `stepcache calibrate` or a Plan, got {plan!r}.")


def stretched(mask: str, steps: int) -> str:
    """The mask for another number of steps: each full step stays at the same fraction of the run, the first at 0."""
    full_steps = {i * steps // len(mask) for i, letter in enumerate(mask) if letter == "F"}
    return "".join("F" if i in full_steps else "P" for i in range(steps))


def _dump(value: Any) -> str:
    """JSON, with one line for each entry of a list of objects."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(json.dumps(entry) for entry in value) + "\n]"
    return json.dumps(value)
