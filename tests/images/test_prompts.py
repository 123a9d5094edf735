import pytest

from stepcache.errors import InvalidSetting
from stepcache.images.prompts import KEYS, Prompt, bundled_prompts, check_text, parse_prompts, read_prompts


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_has_a_prompt_a_line(tmp_path):
    path = written(tmp_path, "p.txt", "# of fruit\na red apple\r\n\n   \n  two pears, #1  \n")
    assert read_prompts(path) == [Prompt("a red apple"), Prompt("two pears, #1")]


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    assert read_prompts(written(tmp_path, "p.txt", "a café".encode("utf-8-sig"))) == [Prompt("a café")]


def test_jsonl_says_more_of_a_prompt(tmp_path):
    lines = (
        '{"prompt": "a red apple"}\n\n'
        '{"prompt": " a\u2028pear ", "negative_prompt": "", "seed": 7, "height": 64, "width": 128}\n'
    )
    first, second = read_prompts(written(tmp_path, "p.JSONL", lines))
    assert first == Prompt("a red apple")
    assert second == Prompt("a\u2028pear", negative="", seed=7, height=64, width=128)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a red apple", "not JSON"),
        ('["a red apple"]', "an object such as"),
        ('{"text": "x"}', "unknown key 'text'. Known: prompt, negative_prompt, seed, height, width"),
        ('{"seed": 3}', 'has no "prompt"'),
        ('{"prompt": " "}', "\"prompt\" must be a non-empty string, got ' '"),
        ('{"prompt": 3}', '"prompt" must be a non-empty string, got 3'),
        ('{"prompt": "x", "negative_prompt": null}', '"negative_prompt" must be a string'),
        ('{"prompt": "x", "seed": -1}', '"seed" must be an integer of at least 0, got -1'),
        ('{"prompt": "x", "seed": 1.5}', '"seed" must be an integer of at least 0, got 1.5'),
        ('{"prompt": "x", "seed": true}', '"seed" must be an integer of at least 0, got True'),
        ('{"prompt": "x", "seed": 9223372036854775808}', '"seed" must be below 2**63'),
        ('{"prompt": "x", "height": 100}', '"height" must be a multiple of 8 pixels and at least 16, got 100'),
        ('{"prompt": "x", "width": 8}', '"width" must be a multiple of 8 pixels and at least 16, got 8'),
    ],
)
def test_a_bad_line_is_named_by_its_number(line, words, tmp_path):
    path = written(tmp_path, "p.jsonl", f'{{"prompt": "fine"}}\n\n{line}\n')
    with pytest.raises(InvalidSetting) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}, line 3: ") and words in str(error.value)


@pytest.mark.parametrize(("name", "content"), [("p.txt", "# only a comment\n\n"), ("p.jsonl", "\n"), ("p.txt", "")])
def test_a_file_without_prompts(name, content, tmp_path):
    with pytest.raises(InvalidSetting, match=r"has no prompts\. It needs"):
        read_prompts(written(tmp_path, name, content))


def test_another_encoding_is_said(tmp_path):
    with pytest.raises(InvalidSetting, match=r"p\.txt, line 2: not UTF-8 \(byte 0xe9\)"):
        read_prompts(written(tmp_path, "p.txt", "a cup\na caf\u00e9".encode("latin-1")))


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InvalidSetting, match=r"nowhere\.txt cannot be read: No such file"):
        read_prompts(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"), ('{"prompt":' + "[" * 10**5, "nested too deep"),
        (f'{{"prompt": "x", "seed": {"9" * 5000}}}', "digits"), ('{"prompt": "x", "seed": NaN}', "NaN is not a number"),
        ('{"prompt": "x", "prompt": "y"}', "is there twice"), ('{"prompt": "x", "height": 16384}', "at most 16376"),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_said_with_its_line(line, reason):
    with pytest.raises(InvalidSetting, match=rf"^p\.jsonl, line 2: .*{reason}"):
        parse_prompts(f'{{"prompt": "fine"}}\n{line}', "p.jsonl", lines_of_json=True)


def test_text_from_the_command_line_is_text():
    with pytest.raises(InvalidSetting, match=r"^--prompt: .* has bytes that are not UTF-8"):
        check_text(b"caf\xe9".decode("utf-8", "surrogateescape"), "--prompt")


def test_lines_of_json_in_a_text_get_a_hint():
    with pytest.raises(InvalidSetting, match=r"^p\.txt, line 2: .* is JSON.*ends in \.jsonl"):
        parse_prompts('a cat\n{"prompt": "a dog"}', "p.txt")
    assert parse_prompts("{a cat} in braces", "p.txt") == [Prompt("{a cat} in braces")]


@pytest.mark.parametrize(("name", "count"), [("general", 24), ("demo", 12)])
def test_the_bundled_sets(name, count):
    prompts = [prompt.text for prompt in bundled_prompts(name)]
    assert len(set(prompts)) == len(prompts) == count
    assert all(prompt == prompt.strip() for prompt in prompts)


def test_the_demo_s_prompts_are_within_its_limit():
    from support import small
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{small.DEMO}/tokenizer")
    for prompt in bundled_prompts("demo"):
        assert len(tokenizer(prompt.text).input_ids) <= tokenizer.model_max_length


def test_keys_are_the_fields():
    values = {"prompt": '"x"', "negative_prompt": '"y"', "seed": "1", "height": "16", "width": "24"}
    line = "{" + ", ".join(f'"{key}": {values[key]}' for key in KEYS) + "}"
    assert parse_prompts(line, "here", lines_of_json=True) == [Prompt("x", "y", 1, 16, 24)]
