import json

import pytest

from stepcache.commands.document import decibels, print_document


def test_figures_that_json_does_not_have_are_null(capsys):
    print_document({"a": [float("inf"), {"b": (float("nan"), -float("inf"), 1.5, 2, True, "inf", None)}]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": [None, {"b": [None, None, 1.5, 2, True, "inf", None]}]
    }


def test_texts_need_no_encoding(capsys):
    print_document({"prompt": "\u00e9\ud83d\ude00"})
    assert capsys.readouterr().out.isascii()


@pytest.mark.parametrize(("psnr", "identical"), [(None, None), (31.5, False), (float("inf"), True)])
def test_identical_images_are_told_from_those_that_were_not_compared(psnr, identical):
    assert decibels(psnr) == {"psnr_db": psnr, "identical": identical}
