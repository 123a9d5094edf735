from PIL import Image
from support.comparing import comparison_of

from stepcache.comparison import sheet
from stepcache.comparison.results import Compared, FewerSteps, Shot
from stepcache.comparison.sheet import draw
from stepcache.images.make import Request


def test_a_sheet_of_many_prompts_goes_on_below():
    comparison, shot = comparison_of((2, 0)), Shot("", Image.new("RGB", (16, 16)), 1.0, "FP", psnr=20.0)
    comparison.results = [Compared(Request(str(i), i, 2), 16, 16, shot, [shot]) for i in range(9)]
    tall = draw(comparison)
    comparison.results = comparison.results[:8]
    short = draw(comparison)
    assert tall.width == short.width and tall.height > 1.8 * short.height


def test_fewer_steps_are_a_row_below_those_they_cost_as_much_as(monkeypatch):
    comparison, picture = comparison_of((2, 0), (2, 1)), Image.new("RGB", (16, 16))
    comparison.settings = [*comparison.variants, FewerSteps(12, 30, tuple(comparison.variants))]
    shots = [Shot("", picture, 2.0, kinds, psnr=20.0) for kinds in ("FP", "FP", "F")]
    comparison.results = [Compared(Request("a", 0, 2), 16, 16, Shot("", picture, 4.0, "FF"), shots)]
    seen, drawn = [], sheet.contact_sheet
    monkeypatch.setattr(sheet, "contact_sheet", lambda *args: seen.append(args) or drawn(*args))
    draw(comparison)
    ((_, subheading, _, rows),) = seen
    assert [row.title for row in rows] == ["original", "interval 2", "interval 2", "12 of 30 steps"]
    assert rows[2].notes[0] == "branch 1"
    assert rows[3].notes == ["for the cost of the 2 rows above", "speed-up 2.00x, 2.00 s", "PSNR 20.0 dB"]
    assert rows[3].steps == "F" and "Fewer steps: the original pipeline" in subheading
    assert "Figures are over 1 prompt." in subheading
    comparison.settings, comparison.results[0].shots[:] = comparison.variants, shots[:2]
    draw(comparison)
    assert "Fewer steps" not in seen[1][1]
