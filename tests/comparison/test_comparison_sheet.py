from PIL import Image
from support.comparing import comparison_of

from stepcache.comparison.results import Compared, Shot
from stepcache.comparison.sheet import draw
from stepcache.images.make import Request


def test_a_sheet_of_many_prompts_goes_on_below():
    comparison, shot = comparison_of((2, 0)), Shot("", Image.new("RGB", (16, 16)), 1.0, "FP", psnr=20.0)
    comparison.results = [Compared(Request(str(i), i, 2), 16, 16, shot, [shot]) for i in range(9)]
    tall = draw(comparison)
    comparison.results = comparison.results[:8]
    short = draw(comparison)
    assert tall.width == short.width and tall.height > 1.8 * short.height
