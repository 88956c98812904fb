"""``glip detect --caption``: a sentence is asked for its noun phrases; errors are one line with exit code 2."""

import json

import pytest

CAPTION = "a man in a red shirt rides a brown horse"


@pytest.fixture
def detect(command_line, tiny_folder, image):
    """Run the verb on images that are there."""
    image.save("a.jpg")
    image.save("b.png")
    return lambda *arguments: command_line("detect", *arguments, "--model", tiny_folder, "--device", "cpu")


@pytest.fixture
def refused(detect):
    def run(*arguments: object) -> str:
        code, out, err = detect(*arguments)
        assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("glip detect: "), err
        return err.strip()

    return run


def test_a_sentence_is_asked_for_its_things(detect, tmp_path):
    code, out, err = detect("a.jpg", "b.png", "--caption", CAPTION, "--json", "found.jsonl", "--out", "drawn")
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


def test_what_was_not_found_is_said(detect, monkeypatch):
    monkeypatch.setattr("glip.text.phrases.noun_phrases", lambda caption: ((2, 5), (11, 20)))
    code, out, _ = detect("a.jpg", "--caption", CAPTION, "--threshold", 1)
    assert code == 0 and "  not found: man, red shirt\n" in out
    code, out, _ = detect("a.jpg", "--caption", CAPTION, "--threshold", 0)
    assert code == 0 and "not found" not in out
    code, out, _ = detect("a.jpg", "man. red shirt", "--threshold", 1)
    assert code == 0 and "not found" not in out, "a list knows what it asked for"


@pytest.mark.parametrize("words", ["a dog", "a red bus. a cyclist", "dog"])
def test_words_besides_a_caption_are_one_line(refused, words):
    line = refused("a.jpg", words, "--caption", CAPTION)
    assert f"words {words!r} and --caption, which says what to look for: give images and one of the two" in line
    assert f"words {words!r} and --task, which" in refused("a.jpg", words, "--task", "none.safetensors")


def test_a_missing_image_is_no_words(detect):
    code, out, err = detect("a.jpg", "c.png", "--caption", CAPTION, "--json", "-")
    assert code == 2 and "image 'c.png' is not there: check the path" in err and json.loads(out)["image"] == "a.jpg"


def test_a_caption_besides_a_task_is_one_line(refused):
    assert "not allowed with argument" in refused("a.jpg", "--caption", CAPTION, "--task", "x.safetensors")


@pytest.mark.parametrize("caption", ["", "   ", "..."])
def test_captions_that_name_nothing_are_one_line(refused, caption):
    assert "names nothing" in refused("a.jpg", "--caption", caption)


def test_captions_that_are_too_long_or_no_text_are_one_line(refused):
    assert "the model reads 256" in refused("a.jpg", "--caption", "a red bus and " * 3000 + "a dog")
    assert "characters that are not UTF-8" in refused("a.jpg", "--caption", "a cat \udcff")
