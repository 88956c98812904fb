"""Names as people type them: one text with dots, semicolons, bars, lines or commas between them, or a list as text."""

import ast
import html
import re

from glip.text.phrases import noun_phrases

_ENDINGS = "com|org|net|edu|gov|html?|jpe?g|png|gif|txt|pdf|csv|json|zip|exe"  # of addresses and files
_WORD_DOT = rf"(?<=[^\W\d_]{{3}})\.(?!(?:{_ENDINGS})\b)(?=[^\W\d_]{{3}}|(?:an?|the)\s)"  # "house.a tree", not "St.John"
_CERTAIN = re.compile(rf"\.+(?:\s+|$)|[;|\n\r\t]|\\n|{_WORD_DOT}")
_COMMA = re.compile(r",\s*(?:(?:and|or)\s+)?")
_LAST = re.compile(r"\s+(?:and|or)\s+")
_LONGEST = 6  # words of a name between commas; longer parts are those of a sentence
_QUOTED = re.compile(r"[\"'“‘]([^\"'“”‘’]*)[\"'”’]")


def split_names(text: str) -> list[str]:
    """Split a text at what can only stand between names.

    Always at a dot before a space or the end, a dot between two words, semicolons, bars, tabs and line ends; never at a
    dot within "7.5 cm". Without any of these at commas, if the parts name things: "a dog, a cat and a bird" is a list,
    "a small, red car" is not. A list of strings as Python and JSON write it gives its items as they are.
    """
    text = html.unescape(text).strip()
    if listed := _list_items(text):
        return listed
    parts = [part for part in map(_bare, _CERTAIN.split(text)) if part]
    return parts if len(parts) != 1 else _at_commas(parts[0])


def _list_items(text: str) -> list[str]:
    """The items of a list that is written as text; none if it is not one."""
    quoted = text[:1] in ("'", '"') and "," in text
    if text[:1] not in ("[", "(", "{") and not quoted:
        return []
    try:
        items = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        bare = re.fullmatch(r"\[([^\[\]]*)\]", text)  # [a dog, a cat]
        return [part for part in map(_bare, bare[1].split(",")) if part] if bare else []
    whole = isinstance(items, list | tuple) and all(isinstance(item, str) for item in items)
    return [item.strip() for item in items if item.strip()] if whole else []


def _at_commas(text: str) -> list[str]:
    parts = [part for part in map(_bare, _COMMA.split(text)) if part]
    if len(parts) < 2:
        return parts
    parts[-1:] = map(_bare, _LAST.split(parts[-1]))
    if any(len(part.split()) > _LONGEST for part in parts):
        return [text]
    things = [bool(noun_phrases(part)) for part in parts]
    return parts if things[-1] and sum(things[:-1]) > len(things[:-1]) / 2 else [text]


def _bare(text: str) -> str:
    """Without white space and quotation marks around it."""
    quoted = _QUOTED.fullmatch(text.strip())
    return (quoted[1] if quoted else text).strip()
