"""``glip detect --caption``: the noun phrases of a sentence are detected; errors are one line with exit code 2."""

import json

import pytest

CAPTION = "a man in a red shirt rides a brown horse"


@pytest.fixture
def detect(command_line, tiny_folder, image):
    """Run the verb in a folder with two images."""
    image.save("a.jpg")
    image.save("b.png")
    return lambda *arguments: command_line("detect", *arguments, "--model", tiny_folder, "--device", "cpu")


def test_the_noun_phrases_of_a_sentence_are_detected(detect, tmp_path):
    code, _, err = detect("a.jpg", "b.png", "--caption", CAPTION, "--json", "found.jsonl", "--out", "drawn")
    assert code == 0 and err == ""
    first, second = (json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines())
    assert first["caption"] == second["caption"] == CAPTION
    assert [phrase.removeprefix("a ") for phrase in first["phrases"]] == ["man", "red shirt", "brown horse"]
    assert len(first["detections"]) > 0
    for item in first["detections"]:
        [(start, end)] = item["spans"]
        assert CAPTION[start:end] == item["phrase"] == first["phrases"][item["label"]]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a.jpg", "b.png"], "all are images"


def test_the_caption_may_stand_anywhere(detect):
    first = detect("--caption", CAPTION, "a.jpg", "--json", "-")
    assert first == detect("a.jpg", "--json", "-", "--caption", CAPTION) and first[0] == 0 and first[1]


def test_phrases_of_a_sentence_that_were_not_found_are_printed(detect):
    _, out, _ = detect("a.jpg", "--caption", CAPTION, "--threshold", 1)
    assert "  not found: " in out and "red shirt" in out
    assert "not found" not in detect("a.jpg", "--caption", CAPTION, "--threshold", 0)[1]
    assert "not found" not in detect("a.jpg", "man. red shirt", "--threshold", 1)[1], "a list of names"


def test_a_missing_image_is_no_prompt(detect):
    code, out, err = detect("a.jpg", "c.png", "--caption", CAPTION, "--json", "-")
    assert code == 2 and "image 'c.png' is not there" in err and json.loads(out)["image"] == "a.jpg"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("dog", "--caption", CAPTION), "prompt 'dog' besides --caption"),
        (("a red bus. a cyclist", "--task", "none.safetensors"), "besides --task"),
        (("--caption", CAPTION, "--task", "x.safetensors"), "not allowed with argument"),
        (("--caption", ""), "names nothing"),
        (("--caption", "..."), "names nothing"),
        (("--caption", "a red bus and " * 3000 + "a dog"), "256"),
        (("--caption", "a cat \udcff"), "UTF-8"),
    ],
)
def test_errors_are_one_line(detect, arguments, named):
    code, out, err = detect("a.jpg", *arguments)
    assert code == 2 and out == "" and err.startswith("glip detect: ") and named in err and err.count("\n") == 1
