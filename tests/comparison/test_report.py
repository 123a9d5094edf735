import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from stepcache.comparison.cost import Cost
from stepcache.comparison.report import html_report
from stepcache.comparison.results import Compared, Comparison, FewerSteps, Shot, Variant
from stepcache.images.make import Request

PIXEL = Image.new("RGB", (8, 8))
URI = "data:image/webp;base64,AAAA"
VOID = {"meta", "link", "img", "input"}


def shot(kinds="FP", **figures):
    return Shot(URI, PIXEL, 1.5, kinds, difference=URI, **figures)


def comparison():
    variants = [Variant(2, 0), Variant(3, 0)]
    reused = [shot(psnr=20.0, ssim=0.9), shot(psnr=math.inf, ssim=1.0)]
    first = Request("a <b>bold</b> & 'quoted' \"prompt\"", 5, 2, {"negative_prompt": "<i>"})
    second = Request("second", 6, 2, {"negative_prompt": None})
    results = [
        Compared(first, 64, 96, shot("FF"), reused),
        Compared(second, 512, 512, shot("FF"), [shot(psnr=25.0, ssim=0.8), shot(censored=True)]),
    ]
    return Comparison("m&m", "A summary.", variants, results, facts=[("Device", "<cpu>")], notes=["A note."])


class Page(HTMLParser):
    """The page's elements as (tag, attributes), its text, and what is not closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag, **wanted):
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]


@pytest.fixture(scope="module")
def page():
    return Page(html_report(comparison()))


def test_it_is_well_formed(page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_it_asks_for_nothing_else(page):
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    assert "url(" not in html_report(comparison()) and "@import" not in html_report(comparison())
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_prompts_are_text_and_not_markup(page):
    assert "a <b>bold</b> & 'quoted' \"prompt\"" in page.text
    assert "Negative prompt: <i>" in page.text and "<cpu>" in page.text and "m&m" in page.text
    assert not page.all("i") and len(page.all("b")) == 2  # the speed-ups


def test_every_image_has_words(page):
    images = page.all("img")
    assert len(images) == 2 * (1 + 2 * 2)
    assert len({image["alt"] for image in images}) == len(images)
    assert images[0]["alt"] == "Original: a <b>bold</b> & 'quoted' \"prompt\""
    assert (images[0]["width"], images[0]["height"]) == ("96", "64")


def test_one_setting_is_shown_and_the_others_are_hidden(page):
    marked = [(attributes["data-setting"], "hidden" in attributes) for _, attributes in page.elements
              if "data-setting" in attributes]  # fmt: skip
    assert set(marked) == {("0", False), ("1", True)}


def test_everything_can_be_reached_by_keyboard(page):
    assert [choice["value"] for choice in page.all("input", name="setting")] == ["0", "1"]
    assert [choice["value"] for choice in page.all("input", name="view")] == ["side", "slider", "difference"]
    dividers = page.all("input", type="range")
    assert len(dividers) == 2 and all(divider["aria-label"] for divider in dividers)


def test_figures(page):
    assert "Interval 3, branch 0" in page.text and "worst 20.0 dB" in page.text and "identical" in page.text
    assert "Not compared the pipeline's safety checker blackened it" in page.text
    assert page.all("li", **{"data-psnr": "20.0000 Infinity"}) and page.all("li", **{"data-psnr": "25.0000 Infinity"})
    assert "A note." in page.text and "None" not in page.text
    for absent in ("LPIPS", "CLIP score", "Drift of the feature"):
        assert absent not in page.text


def test_scores_and_drift_where_there_are_some():
    full = comparison()
    full.results = [
        replace(result, original=replace(result.original, clip=31.0),
                shots=[replace(shot, clip=30.0, lpips=0.125, psnr=30.0, ssim=0.9, censored=False)
                        for shot in result.shots])
        for result in full.results
    ]  # fmt: skip
    full.drifts = {full.variants[1]: [[0.0, 0.1, 0.2], [0.0, 0.1, 0.4]]}
    full.missing = ["Something is missing."]
    page = Page(html_report(full))
    assert "LPIPS 0.125" in page.text and "CLIP score 30.00 of 31.00" in page.text
    assert "mean over the first 2 prompts; lines: least to most" in page.text
    assert len(page.all("svg", **{"class": "drift"})) == 1
    assert "Not measured. Something is missing." in page.text


def test_small_images_show_their_pixels():
    html = html_report(comparison())
    assert re.findall(r'<div class="(stage[^"]*)"', html) == ["stage small", "stage"]


def test_fewer_steps_have_a_row_and_images_and_say_whose_cost_they_have():
    full = comparison()
    two, three = full.variants
    full.settings = [two, three, FewerSteps(12, 30, (two, three))]
    full.cost = Cost(100, {0: 25})
    full.results = [replace(result, shots=[*result.shots, shot("F", psnr=18.0, ssim=0.7)]) for result in full.results]
    page = Page(html_report(full))
    assert "Fewer steps: 12 of 30 at the cost of interval 2, branch 0 and of interval 3, branch 0" in page.text
    assert "cost of 1.0 full calls" in page.text and "cost of 1.2 full calls" in page.text
    assert "Interval, branch; or steps 2, 0 3, 0 12 steps" in page.text
    assert [choice["value"] for choice in page.all("input", name="setting")] == ["0", "1", "2"]
    assert len(page.all("figure", **{"class": "faster", "data-setting": "2"})) == 2
    assert page.all("li", **{"data-psnr": "20.0000 Infinity 18.0000"})
    sentences = page.text[page.text.index("A summary.") : page.text.index("Overview")]
    assert "2 prompts are too few to tell whether interval 2, branch 0 or 12 of 30 steps" in sentences
    assert "Fewer steps: the original pipeline with the most steps that cost no more" in page.text
    without = Page(html_report(comparison())).text
    assert "steps" not in without and "full calls" not in without and "too few" not in without


@pytest.mark.parametrize(("predict", "predicts"), [("hold", False), (0.0, False), ("auto", True), ((1.0, 0.0), True)])
def test_what_a_partial_step_takes(predict, predicts):
    predicted = comparison()
    predicted.settings = [Variant(2, 0, predict), Variant(3, 0, predict)]
    predicted.drifts = {predicted.settings[0]: [[0.0, 0.1]]}
    text = Page(html_report(predicted)).text
    assert ("with a feature predicted from the last full steps" in text) is predicts
    assert ("with the feature of the last full step" in text) is not predicts
    taken = "which holding would put in its place" if predicts else "which a partial step takes in its place"
    assert f"that of the last full step, {taken}:" in text
