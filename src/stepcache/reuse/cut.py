"""Where a U-Net is cut: its joins and skips, and what a partial step of each branch runs. Ints and names only.

A U-Net pushes one skip for `conv_in`, for each down-path ResNet (with its attention) and for each downsampler. It pops
one at each join, an up-path ResNet. Joins are counted from the output: join 0 is the last one, and takes skip 0,
`conv_in`'s output. Branch m runs the last m+1 joins, which take skips 0..m. The feature is the hidden state that enters
join m. The numbering is that of DeepCache's `cache_branch_id`. What its paper (arXiv 2312.00858) and onediff call
(0, 0) is branch 1.

K blocks (in the latent upscaler) are coarser: a down block keeps one skip, the output of its last ResNet, and an up
block joins it at its first ResNet. `conv_in`'s output is not a skip. Skips and joins are counted in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BranchOutOfRange, InvalidSetting
from ..values import as_int, shown


@dataclass(frozen=True)
class Join:
    """One place on the up path where the hidden state meets a skip: ResNet `layer` of `up_blocks[block]`."""

    block: int
    layer: int


@dataclass(frozen=True)
class Layout:
    """The skeleton of a U-Net: ResNets and samplers of each block, in the order in which they run.

    down: for each down block, (number of ResNets, whether it ends in a downsampler).
    up: for each up block, (number of ResNets, whether it ends in an upsampler).
    block_skips: with K blocks, how many down blocks keep their one skip; None if every layer keeps one.
    """

    down: tuple[tuple[int, bool], ...]
    up: tuple[tuple[int, bool], ...]
    block_skips: int | None = None

    @property
    def joins(self) -> tuple[Join, ...]:
        """All joins in the order of branches, so the last one to run comes first."""
        if self.block_skips is not None:
            return tuple(Join(b, 0) for b in reversed(range(len(self.up))))[: self.block_skips]
        order = [Join(b, i) for b, (resnets, _) in enumerate(self.up) for i in range(resnets)]
        return tuple(reversed(order))

    @property
    def skips(self) -> tuple[str, ...]:
        """The names of all skips in the order in which they are pushed, for example "down_blocks.0.resnets.1"."""
        if self.block_skips is not None:
            lasts = [resnets - 1 for resnets, _ in self.down[: self.block_skips]]
            return tuple(f"down_blocks.{b}.resnets.{last}" for b, last in enumerate(lasts))
        names = ["conv_in"]
        for b, (resnets, downsamples) in enumerate(self.down):
            names += [f"down_blocks.{b}.resnets.{i}" for i in range(resnets)]
            names += [f"down_blocks.{b}.downsamplers.0"] if downsamples else []
        return tuple(names)

    def cut(self, branch: object) -> Cut:
        """The cut for `branch`. Raises InvalidSetting if it is not an int, BranchOutOfRange if the U-Net lacks it."""
        joins = self.joins
        number = as_int(branch)
        if number is None:
            raise InvalidSetting(f"branch must be an integer from 0 to {len(joins) - 1}, got {shown(branch)}.")
        if not 0 <= number < len(joins):
            choices = "\n".join(f"  {m:2d}: {self.cached(m)}" for m in range(len(joins)))
            raise BranchOutOfRange(
                f"branch={shown(number)} is out of range: this U-Net has branches 0 to {len(joins) - 1}. "
                f"What each caches:\n{choices}"
            )
        return Cut(number, joins[number].block, joins[number].layer, self.block_skips is not None)

    def cached(self, branch: int) -> str:
        """The feature of `branch` in words: the output of the layer just before its join."""
        join = self.joins[branch]
        if join.layer > 0:
            return f"output of up_blocks.{join.block}, layer {join.layer - 1}"
        if join.block > 0:
            return f"output of up_blocks.{join.block - 1}"
        return "output of the mid block"


@dataclass(frozen=True)
class Cut:
    """One branch of one U-Net: the partial step enters `up_blocks[block]` at ResNet `layer` with skips 0..branch.

    by_block: the U-Net has K blocks, with one skip per block.
    """

    branch: int
    block: int
    layer: int
    by_block: bool = False

    @property
    def skips(self) -> int:
        """How many skips a partial step needs."""
        return self.branch + 1


def layout_of(down_blocks: Sequence[object], up_blocks: Sequence[object]) -> Layout:
    """The layout of diffusers' blocks, by their `resnets` and `downsamplers` or `upsamplers` (a list or None)."""
    return Layout(
        down=tuple((len(b.resnets), bool(b.downsamplers)) for b in down_blocks),  # type: ignore[attr-defined]
        up=tuple((len(b.resnets), bool(b.upsamplers)) for b in up_blocks),  # type: ignore[attr-defined]
    )
