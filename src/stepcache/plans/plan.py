"""Plans: what `stepcache calibrate` found for one model, scheduler and number of steps, as a JSON file.

A plan says which steps are full, which branch partial steps run, how they predict the feature, and whether they reuse
guidance. It also records what it was made for, and the figures that were measured with it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import InvalidSetting
from ..files.reading import NotJson, parsed, path_of, read_text
from ..files.replacing import write_text
from ..reuse.predict import Apart, Fitted, Line, Predictor
from ..reuse.schedule import MOST_STEPS, Schedule
from ..values import LARGEST, as_int, as_number, as_word, is_a, is_one_of, shown, true_or_false
from .fingerprints import config_hash, same_weights, sampling, sampling_differs, weight_sample
from .reading import entries, infinite, integer, number, plain, sequence, word
from .weights import Table, checked_table

FORMAT = 2
"""Of files that are written. Those of format 1 have no halves apart (`UNKNOWN_IN`)."""

UNKNOWN_IN: dict[int, dict[str, Any]] = {1: {"apart": False, "difference": 0.0}, FORMAT: {}}
"""By format of files that are read: the keys that it lacks, with their values."""


@dataclass(frozen=True)
class MadeFor:
    """What a plan was made for. unet: its class. config, weights: from fingerprints.py. guidance is only recorded."""

    unet: str
    config: str
    weights: tuple[float, ...] = field(repr=False)
    scheduler: dict[str, Any]
    guidance: float

    def __post_init__(self) -> None:
        found = plain(self.scheduler, "made_for.scheduler")
        word(found.get("class") if type(found) is dict else None, "made_for.scheduler.class")
        sample = enumerate(sequence(self.weights, "made_for.weights"))
        _set(
            self,
            unet=word(self.unet, "made_for.unet"),
            config=word(self.config, "made_for.config"),
            weights=tuple(number(value, f"made_for.weights[{i}]") for i, value in sample),
            scheduler=found,
            guidance=number(self.guidance, "made_for.guidance"),
        )

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
    """What was measured on images: mean PSNR (dB) and mean SSIM against the original's, and the speed-up in MACs.

    psnr: infinite if all images are identical to the original's.
    """

    what: str
    speedup: float
    psnr: float
    ssim: float

    def __post_init__(self) -> None:
        alike = as_number(self.psnr) == math.inf
        _set(
            self,
            what=word(self.what, "what"),
            speedup=number(self.speedup, "speedup", 0),
            psnr=math.inf if alike else number(self.psnr, "psnr"),
            ssim=number(self.ssim, "ssim"),
        )


@dataclass(frozen=True)
class Plan:
    """One way to run, for `accelerate(pipe, plan=...)`.

    mask: a letter for each iteration of the loop, F or P. branch, guidance: as in `accelerate`. order, table: fitted
    weights (predict.Fitted); with an empty table the line alone predicts. damping: the line's, from -1 to 1, for steps
    that the table lacks. apart: whether the mean of the guidance halves and their difference are predicted apart, by
    values 0 and 1 of the table; `damping` is then the mean's, and `difference` that of the difference. speedup: MACs of
    the run that the figures compare with over the plan's, in the U-Net. figures: on held-out prompts, this plan's,
    those of predict="auto" with as many full steps, evenly spaced, then those of DeepCache's algorithm at the same or
    lower cost, and (if any) at the next higher cost. made_with: versions, date, prompts, seeds, command.

    Raises InvalidSetting, with the key and the value, for what no run could use: another type, a number that is not
    finite, a weight over 1,000 (weights.HEAVIEST), or one for a step outside of the mask or for full steps after it.
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
    apart: bool = False
    difference: float = 0.0

    def __post_init__(self) -> None:
        mask = _mask(self.mask)
        if not is_a(self.made_for, MadeFor):
            raise InvalidSetting(f"made_for must be a MadeFor, got {shown(self.made_for)}.")
        branch, order, damping = as_int(self.branch), as_int(self.order), as_number(self.damping)
        if branch is None or branch < 0 or not is_one_of(self.guidance, ("both", "reuse")):
            raise InvalidSetting(
                f'A plan has a branch of at least 0 and guidance "both" or "reuse", got {shown(self.branch)} and '
                f"{shown(self.guidance)}."
            )
        if order not in (1, 2, 3) or damping is None or not -1 <= damping <= 1 or (damping and order == 1):
            raise InvalidSetting(
                f"A plan has an order of 1 to 3 and a damping of -1 to 1 (0 at order 1), got {shown(self.order)} and "
                f"{shown(self.damping)}."
            )
        apart, difference = true_or_false("apart", self.apart), as_number(self.difference)
        if difference is None or not -1 <= difference <= 1 or (difference and (order == 1 or not apart)):
            raise InvalidSetting(
                "A plan has a damping of the difference of -1 to 1 (0 at order 1, and where halves are not apart), got "
                f"{shown(self.difference)}."
            )
        figures = sequence(self.figures, "figures")
        for i, each in enumerate(figures):
            if not is_a(each, Figures):
                raise InvalidSetting(f"figures[{i}] must be Figures, got {shown(each)}.")
        _set(
            self,
            mask=mask,
            branch=integer(branch, "branch", highest=LARGEST),
            guidance=as_word(self.guidance),
            order=order,
            damping=damping,
            table=checked_table(self.table, len(mask), order),
            speedup=number(self.speedup, "speedup", 0),
            figures=figures,
            made_with=_settings(self.made_with, "made_with"),
            difference=difference,
        )

    @property
    def schedule(self) -> Schedule:
        """Which steps are full."""
        return Schedule.explicit(self.mask)

    @property
    def predictor(self) -> Predictor:
        """How partial steps predict the feature."""
        return Fitted(self.table, self.order, self.line, self.apart) if self.table else self.line

    @property
    def line(self) -> Line | Apart:
        """How steps are predicted that the table lacks."""
        return Apart(self.damping, self.difference) if self.apart else Line(self.damping)

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
            damped = f"{self.damping:g}"
            if self.apart:
                damped += f" (the difference of the guidance halves by {self.difference:g})"
            yield (
                f"A plan for {len(self.mask)} steps in a run of {steps}: its full steps are stretched to "
                f"{stretched(self.mask, steps)}, and a line damped by {damped} replaces its weights."
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
        if not adapt or steps is None or steps > MOST_STEPS:
            known = "of an unknown number of steps" if steps is None else f"of {steps} steps"
            raise InvalidSetting(
                f"This plan is for {len(self.mask)} steps of the loop, but was used in a run {known}. Run that many, "
                "calibrate a plan for this number, or let accelerate(..., adapt=True) stretch it."
            )
        return Schedule.explicit(stretched(self.mask, steps)), self.line

    def to_json(self) -> str:
        """The file's text."""
        body = asdict(self) | {"format": FORMAT}
        body["table"] = [
            {"value": value, "step": step, "full": full_steps, "weights": [round(w, 7) for w in weights]}
            for (value, step, full_steps), weights in self.table.items()
        ]
        body["figures"] = plain(body["figures"], "figures")
        order = ["format", *(f.name for f in fields(self) if f.name not in ("table", "made_for")), "made_for", "table"]
        lines = [f"{json.dumps(key)}: {_dump(body[key])}" for key in order]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file, or replace one, whole or not at all.

        Raises InvalidSetting for what is no path, and OSError, with the path, if it cannot be written.
        """
        write_text(path_of(path, "path"), self.to_json())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan. Raises InvalidSetting, with the file, the key and the reason, if it cannot, or it is none."""
        file = path_of(path, "plan")
        text = read_text(file)
        try:
            return cls(**_body(parsed(text, constant=str)))
        except (NotJson, InvalidSetting) as error:
            raise InvalidSetting(f"{file} is no plan of `stepcache calibrate`: {str(error).rstrip('.')}.") from None


def plan_of(plan: object) -> Plan:
    """The plan for `accelerate(plan=...)`: a Plan or the path of one. Raises InvalidSetting for anything else."""
    if is_a(plan, Plan):
        return plan  # type: ignore[return-value]
    if is_a(plan, str, os.PathLike):
        return Plan.read(plan)  # type: ignore[arg-type]
    raise InvalidSetting(f"plan must be a file of `stepcache calibrate` or a Plan, got {shown(plan)}.")


def _body(value: object) -> dict[str, Any]:
    """The arguments of `Plan` in a file's JSON value."""
    found = value.get("format") if isinstance(value, dict) else None
    lacks = UNKNOWN_IN.get(as_int(found) or 0)
    if not isinstance(value, dict) or lacks is None:
        known = " and ".join(str(each) for each in UNKNOWN_IN)
        raise InvalidSetting(f"its format is {shown(found)}, and this version reads {known}.")
    body = entries(value, "", ["format", *(each.name for each in fields(Plan) if each.name not in lacks)])
    del body["format"]
    body.update(lacks)
    body["made_for"] = MadeFor(**entries(body["made_for"], "made_for", [each.name for each in fields(MadeFor)]))
    figures = enumerate(sequence(body["figures"], "figures"))
    body["figures"] = tuple(_figures(each, f"figures[{i}]") for i, each in figures)
    table: dict[Any, Any] = {}
    for i, each in enumerate(sequence(body["table"], "table")):
        entry = entries(each, f"table[{i}]", ("value", "step", "full", "weights"))
        full = enumerate(sequence(entry["full"], f"table[{i}].full"))
        steps = tuple(integer(step, f"table[{i}].full[{j}]") for j, step in full)
        at = integer(entry["value"], f"table[{i}].value"), integer(entry["step"], f"table[{i}].step"), steps
        if at in table:
            raise InvalidSetting(f"table[{i}] has weights for the same step as an entry before it.")
        table[at] = entry["weights"]
    body["table"] = table
    return body


def _figures(value: object, key: str) -> Figures:
    found = entries(value, key, [each.name for each in fields(Figures)])
    try:
        return Figures(**{**found, "psnr": infinite(found["psnr"])})
    except InvalidSetting as error:
        raise InvalidSetting(f"{key}.{error}") from None


def _mask(value: object) -> str:
    mask = word(value, "mask")
    try:
        Schedule.explicit(mask)
    except InvalidSetting as error:
        raise InvalidSetting(f"mask: {error}") from None
    return mask


def _settings(value: object, key: str) -> dict[str, Any]:
    found = plain(value, key)
    if type(found) is not dict:
        raise InvalidSetting(f"{key} must be a dict, got {shown(value)}.")
    return found


def _set(instance: object, **values: object) -> None:
    """Fill in the fields of a frozen dataclass, checked."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def stretched(mask: str, steps: int) -> str:
    """The mask for another number of steps: each full step stays at the same fraction of the run, the first at 0."""
    full_steps = {i * steps // len(mask) for i, letter in enumerate(mask) if letter == "F"}
    return "".join("F" if i in full_steps else "P" for i in range(steps))


def _dump(value: Any) -> str:
    """JSON, with one line for each entry of a list of objects."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(json.dumps(entry) for entry in value) + "\n]"
    return json.dumps(value)
