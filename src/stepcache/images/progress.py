"""A progress bar that counts in images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

# The bar moves by parts of an image, so its numbers are rounded.
FORM = "{desc:<22}{percentage:3.0f}% |{bar:30}| {n:.0f}/{total:.0f} images, {elapsed} so far, {remaining} to go"


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

    def _fill(self) -> None:
        self._bar.update(self._begun - self._bar.n)


@contextmanager
def image_bar(total: int) -> Iterator[ImageBar]:
    """A bar of `total` images on stderr."""
    # smoothing=0: the remaining time is guessed from all images so far.
    with tqdm(total=total, bar_format=FORM, smoothing=0, mininterval=0.2) as bar:
        images = ImageBar(bar)
        yield images
        images._fill()
        bar.set_description_str("done")
