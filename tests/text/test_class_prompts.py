"""What is written for classes: brackets or parts in a file, the name as the phrase, the rest as context."""

import json
from pathlib import Path

import pytest

from glip.errors import DataError
from glip.structures import Prompt
from glip.text.class_prompts import ClassPrompt, prompt_from_classes, read_prompts

TASKS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "lists" / "odinw35_tasks.json"


def test_brackets_and_parts():
    tree = {"pothole": "there are some [holes] on the road", "car": {"suffix": " with wheels"}, 3: "[three]"}
    assert read_prompts(tree, ["pothole", "car", "3"]) == {
        "pothole": ClassPrompt(name="holes", prefix="there are some ", suffix=" on the road"),
        "car": ClassPrompt(name="car", suffix=" with wheels"),
        "3": ClassPrompt(name="three"),
    }


def test_the_prompts_of_odinw():
    if not TASKS.is_file():
        pytest.skip("no list of ODinW tasks beside the project")
    tasks = {task["task"]: task for task in json.loads(TASKS.read_text())["tasks"] if task["caption_prompt"]}
    assert len(tasks) == 4
    for task in tasks.values():
        names = [category["name"] for category in task["categories"]]
        prompts = read_prompts(dict(zip(names, task["caption_prompt"], strict=True)), names)
        prompt = prompt_from_classes(names, prompts)
        assert prompt.caption == ". ".join("".join(part.values()) for part in task["caption_prompt"])
        assert prompt.texts == tuple(part["name"] for part in task["caption_prompt"])
        assert all(prompt.caption[start:end] == p.text for p in prompt.phrases for start, end in p.spans)
        assert not prompt.is_list


def test_names_without_context_are_a_list_that_may_be_split():
    names = ["cat", "dog"]
    assert prompt_from_classes(names, {}) == Prompt.from_names(names)
    assert prompt_from_classes(names, {"dog": ClassPrompt(name="hound")}) == Prompt.from_names(["cat", "hound"])
    assert not prompt_from_classes(names, {"dog": ClassPrompt(name="dog", prefix="a ")}).is_list


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (["cat"], r"class prompts: got \['cat'\]"),
        ({"cat": "a cat"}, r"'cat': 'a cat' needs one pair of \[brackets\]"),
        ({"cat": "[a] [cat]"}, r"needs one pair of \[brackets\]"),
        ({"cat": {"praefix": "a"}}, "'cat'.praefix: no such key .did you mean 'prefix'"),
        ({"cat": {"prefix": 7}}, "'cat'.prefix: got 7"),
        ({"cat": 5}, "class prompt of 'cat': got 5"),
        ({"rat": "a [rat]"}, "no class 'rat' in the dataset .did you mean 'cat'.*it has 'cat', 'red bus'"),
    ],
)
def test_what_cannot_be_read(tree, message):
    with pytest.raises(DataError, match=message):
        read_prompts(tree, ["cat", "red bus"])
