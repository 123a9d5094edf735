"""The README is short."""

from support.pages import words_of

from benchmarks import ROOT


def test_words_are_counted_outside_of_code_and_tables():
    text = """# Two words
One, [two](docs/notes.md) `three` - <b>four</b>.
<!-- not this -->
| nor | this |
|---|---|

    nor this
```python
nor this
```
![nor this](x.png) five
<details><summary>nor</summary>
this
</details>
"""
    assert words_of(text) == ["Two", "words", "One,", "[two]", "`three`", "four", "five"]


def test_the_readme_is_read_in_three_minutes():
    assert len(words_of((ROOT / "README.md").read_text())) <= 1000
