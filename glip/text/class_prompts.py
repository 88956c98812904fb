"""The text written for a class: its name, or words around it as in ODinW's caption prompts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glip.errors import DataError
from glip.schema import checked, did_you_mean, parse
from glip.text.prompt import Prompt, join_names

_BRACKETS = re.compile(r"(?P<prefix>[^\[\]]*)\[(?P<name>[^\[\]]*)\](?P<suffix>[^\[\]]*)")


@checked
class ClassPrompt:
    """What is written for a class: ``name`` is the phrase to find, the rest is context around it."""

    name: str
    prefix: str = ""
    suffix: str = ""

    @property
    def text(self) -> str:
        """All that is written."""
        return self.prefix + self.name + self.suffix


def read_prompts(tree: Any, names: Sequence[str]) -> dict[str, ClassPrompt]:
    """Class prompts from the plain values of a YAML or JSON file.

    Args:
        tree: maps a class name to its text with the words that name it in brackets ("there are some [holes] on the
            road"), or to a map of name (default: the class name), prefix and suffix.
        names: the class names of the dataset; any other is an error.

    Raises:
        DataError: naming the class, its value and what is allowed.
    """
    prompts = {}
    for name, value in parse(dict[str, Any], tree, at="class prompts", error=DataError).items():
        if name not in names:
            hint, known = did_you_mean(name, names), ", ".join(map(repr, names[:10]))
            raise DataError(f"class prompts: no class {name!r} in the dataset{hint}: it has {known}")
        if isinstance(value, str):
            parts = _BRACKETS.fullmatch(value)
            if parts is None:
                raise DataError(
                    f"class prompt of {name!r}: {value!r} needs one pair of [brackets] around the words that name the "
                    "class, such as 'there are some [holes] on the road'"
                )
            value = parts.groupdict()
        fields = {"name": name, **value} if isinstance(value, dict) else value
        prompts[name] = parse(ClassPrompt, fields, at=f"class prompt of {name!r}", error=DataError)
    return prompts


def prompt_from_classes(names: Sequence[str], prompts: Mapping[str, ClassPrompt]) -> Prompt:
    """Join classes to a caption as the release does; label ``i`` is class ``i``, its phrase its name alone.

    Raises:
        GlipError: no name, or an empty one.
    """
    written = [prompts.get(name) or ClassPrompt(name=name) for name in names]
    joined = join_names((one.prefix, one.name, one.suffix) for one in written)
    return replace(joined, is_list=not any(one.prefix or one.suffix for one in written))
