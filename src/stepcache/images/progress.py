"""A progress bar that counts in images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ..progress import progress


class ImageBar:
    """A bar of so many images, which moves at each step of each. Use it through `image_bar`."""

    def __init__(self, bar: tqdm) -> None:
        self._bar, self._begun = bar, 0

    def begin(self, name: str, pipe: Any, images: int = 1) -> Callable[[], None]:
        """A batch of `images` begins, and those before it are done. Call what is returned at the end of each step."""
        self._fill()
        self._bar.set_description_str(name)
        self._begun += images

        def each_step() -> None:
            self._bar.update(min(images / len(pipe.scheduler.timesteps), self._begun - self._bar.n))

        return each_step

    def stop(self) -> None:
        """No more images follow than have begun."""
        self._bar.total = self._begun

    def end(self) -> None:
        """All that have begun are done, if they are all that there are; else what was going on stays shown."""
        if self._begun >= self._bar.total:
            self._fill()
            self._bar.set_description_str("done")

    def _fill(self) -> None:
        self._bar.update(self._begun - self._bar.n)


@contextmanager
def image_bar(total: int) -> Iterator[ImageBar]:
    """A bar of `total` images."""
    with progress("starting", total, "images") as bar:
        images = ImageBar(bar)
        yield images
        images.end()
