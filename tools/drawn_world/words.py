"""Words for drawn scenes: lists of class names in which each thing has one, and captions that mention some things.

Captions are built piece by piece with their spans, so annotations are correct by construction: a phrase has the boxes
of all the things it describes, an absent name fits no thing, and a thing without a box fits no phrase.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drawn_world.icons import COLOURS, KINDS, TEXTURES, Box, Thing
from glip.structures import Phrase, Prompt

SIZES = ("small", "medium", "big")
SHAPES = KINDS[:12]
FAMILIES = {
    "shape": SHAPES,
    "vehicle": ("car", "bus", "boat"),
    "animal": ("fish", "bird"),
    "plant": ("tree", "flower", "mushroom"),
    "building": ("house",),
    "fruit": ("apple",),
    "weather symbol": ("sun", "cloud"),
    "household item": ("cup", "umbrella", "ladder", "key", "bell"),
    "toy": ("balloon",),
}
FAMILY_OF = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}
# As in the real world a few things are seen often, which is what a small model can learn from few images.
COMMON = {
    "kind": ("house", "tree", "car", "sun", "fish", "boat", "cup", "star", "circle", "square", "triangle", "heart"),
    "colour": ("red", "green", "blue", "yellow", "orange", "purple", "black", "white"),
}
COMMON_SHARE = 0.85
VALUES = {"size": SIZES, "texture": TEXTURES, "colour": tuple(COLOURS), "kind": KINDS, "family": tuple(FAMILIES)}
ELSEWHERE = (
    *("dog", "cat", "person", "horse", "chair", "clock", "guitar", "bottle"),
    *("bicycle", "aeroplane", "banana", "book", "shoe", "table", "elephant"),
)

SYNONYMS = {
    "circle": ("disc", "disk", "round shape"),
    "rectangle": ("oblong",),
    "ring": ("hoop",),
    "cross": ("plus sign",),
    "diamond": ("rhombus",),
    "crescent": ("crescent moon", "half moon"),
    "house": ("home", "cottage"),
    "car": ("automobile",),
    "flower": ("blossom",),
    "boat": ("ship", "sailboat"),
    "mushroom": ("toadstool",),
    "cup": ("mug",),
    "umbrella": ("parasol",),
    "gray": ("grey",),
    "purple": ("violet",),
    "cyan": ("turquoise",),
    "small": ("little", "tiny"),
    "medium": ("medium-sized", "middle-sized"),
    "big": ("large", "huge"),
    "dotted": ("spotted", "polka dot"),
    "checkered": ("checked", "chequered"),
    "striped": ("stripy",),
    "thing": ("object", "item"),
}
PLURALS = {"cross": "crosses", "bus": "buses", "fish": "fish", "rhombus": "rhombuses"}
RELATIONS = (
    ("to the left of", "left of"),
    ("to the right of", "right of"),
    ("above", "over"),
    ("below", "under"),
    ("in front of", "on"),
)
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# the traits that name a thing, and how often a list of names uses them
SCHEMES: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.40, ("kind",)),
    (0.30, ("colour", "kind")),
    (0.12, ("colour",)),
    (0.04, ("texture", "kind")),
    (0.04, ("size", "kind")),
    (0.04, ("texture", "colour", "kind")),
    (0.03, ("family",)),
    (0.02, ("texture",)),
    (0.01, ("size", "colour", "kind")),
)
# the same for one mention in a caption
MENTIONS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.25, ("kind",)),
    (0.33, ("colour", "kind")),
    (0.10, ("size", "kind")),
    (0.10, ("size", "colour", "kind")),
    (0.07, ("texture", "kind")),
    (0.07, ("texture", "colour", "kind")),
    (0.08, ("colour",)),
)


@dataclass(frozen=True)
class Seen:
    """A thing as the viewer sees it: the box of what is visible, and the name of its size."""

    thing: Thing
    box: Box
    size: str

    def traits(self) -> dict[str, str]:
        """What can be said of the thing, by notion."""
        kind = self.thing.kind
        look = {"size": self.size, "texture": self.thing.texture, "colour": self.thing.colour}
        return {**look, "kind": kind, "family": FAMILY_OF[kind]}


@dataclass(frozen=True)
class Dialect:
    """The words one image uses: a word per notion, an article for lists, whether spans hold the article."""

    words: dict[str, str]
    article: str
    whole: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Dialect":
        """A random dialect."""
        plain = rng.random() < 0.7
        rolls = rng.random(len(SYNONYMS)).tolist()
        words = {}
        for (notion, others), roll in zip(SYNONYMS.items(), rolls, strict=True):
            choice = int(roll * (len(others) + 1))
            words[notion] = others[choice - 1] if choice and not plain else notion
        return cls(words, str(rng.choice(["", "a", "the"], p=[0.7, 0.15, 0.15])), bool(rng.random() < 0.7))

    def noun_phrase(self, traits: dict[str, str], many: bool = False) -> str:
        """Adjectives and noun: {"colour": "red", "kind": "star"} -> "red star"."""
        notions = [traits[name] for name in ("size", "texture", "colour") if name in traits]
        noun = traits.get("kind", traits.get("family", "thing"))
        said = [self.words.get(notion, notion) for notion in (*notions, noun)]
        if many:
            said[-1] = PLURALS.get(said[-1], said[-1] + "s")
        return " ".join(said)


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _chosen(table: tuple[tuple[float, tuple[str, ...]], ...], rng: np.random.Generator) -> tuple[str, ...]:
    weights = np.array([weight for weight, _ in table])
    return table[int(rng.choice(len(table), p=weights / weights.sum()))][1]


def shares(notion: str, values: Sequence[str]) -> list[float] | None:
    """How often each value of a notion is drawn: common ones share ``COMMON_SHARE``; None where all are alike."""
    common = [value in COMMON.get(notion, ()) for value in values]
    number = sum(common)
    if number in (0, len(values)):
        return None
    rest = (1 - COMMON_SHARE) / (len(values) - number)
    return [COMMON_SHARE / number if often else rest for often in common]


def is_novel(traits: dict[str, str]) -> bool:
    """Whether a look is held out: an eighth of the pairs of colour and kind, a seventh of those of texture and kind.

    Every colour, texture and kind is in pairs of both sorts, so a novel pair has known parts (docs/claims.md).
    """
    kind = KINDS.index(traits["kind"]) if "kind" in traits else None
    if kind is None:
        return False
    if "colour" in traits and (3 * tuple(COLOURS).index(traits["colour"]) + kind) % 8 == 0:
        return True
    texture = traits.get("texture", "plain")
    return texture != "plain" and (5 * TEXTURES.index(texture) + kind) % 7 == 0


def is_novel_relation(first: dict[str, str], relation: str, second: dict[str, str]) -> bool:
    """Whether a sixth of the triples, to which this one may belong, is held out: such as a car above a fish."""
    if "kind" not in first or "kind" not in second:
        return False
    side = next(number for number, words in enumerate(RELATIONS) if relation in words)
    return (KINDS.index(first["kind"]) + 3 * side + 2 * KINDS.index(second["kind"])) % 6 == 0


def names(
    seen: list[Seen], dialect: Dialect, rng: np.random.Generator, *, novel: bool = False, joined: bool = False
) -> tuple[tuple[str, ...], list[int]]:
    """A vocabulary in which every thing has exactly one name, and the index of that name for each thing.

    A held-out look is named, also as absent, only where ``novel`` is asked for. Where ``joined`` is, every name joins
    a kind with a colour or a texture.
    """
    scheme = _chosen(tuple(row for row in SCHEMES if not joined or (len(row[1]) > 1 and "size" not in row[1])), rng)
    present = [tuple(one.traits()[name] for name in scheme) for one in seen]
    known = list(dict.fromkeys(present))
    wanted = len(known) + int(rng.integers(4, 13))
    for _ in range(80):
        # a hard negative differs from a thing that is there in one trait; an easy one in all
        traits = list(known[int(rng.integers(len(set(present))))])
        for place in range(len(scheme)) if rng.random() < 0.7 else [int(rng.integers(len(scheme)))]:
            traits[place] = str(rng.choice(VALUES[scheme[place]], p=shares(scheme[place], VALUES[scheme[place]])))
        held_out = is_novel(dict(zip(scheme, traits, strict=True))) and not novel
        if tuple(traits) not in known and len(known) < wanted and not held_out:
            known.append(tuple(traits))
    texts = [dialect.noun_phrase(dict(zip(scheme, traits, strict=True))) for traits in known]
    if rng.random() < 0.3:
        texts += rng.permutation(ELSEWHERE)[: rng.integers(1, 4)].tolist()
    if scheme == ("colour",) and rng.random() < 0.3:
        texts = [f"something {text.split()[0]}" if len(text.split()) == 2 else text for text in texts]
    elif dialect.article:
        texts = [f"the {text}" if dialect.article == "the" else _article(text) for text in texts]
    order = rng.permutation(len(texts)).tolist()
    return tuple(texts[i] for i in order), [order.index(known.index(traits)) for traits in present]


@dataclass(frozen=True)
class _Mention:
    """A noun phrase for a caption, what stands before it, and all the things it is true of."""

    article: str
    words: str
    things: tuple[int, ...]


def caption(
    seen: list[Seen], size: tuple[int, int], dialect: Dialect, rng: np.random.Generator, *, novel: bool = False
) -> tuple[Prompt, dict[int, int]]:
    """A sentence about some of the things, and the phrase of each thing it mentions.

    A held-out relation is said only where ``novel`` is asked for, and then no other.
    """
    mentions = _mentions(seen, dialect, rng)
    caption = str(rng.choice(["", "there is ", "the image shows ", "an image of ", "we see ", "a drawing of "]))
    if caption == "there is " and len(mentions[0].things) > 1:
        caption = "there are "
    phrases, related = [], False
    for index, mention in enumerate(mentions):
        whole = f"{mention.article} {mention.words}".strip()
        start = len(caption) + (0 if dialect.whole else len(whole) - len(mention.words))
        caption += whole
        phrases.append(Phrase(caption[start:], ((start, len(caption)),)))
        following = mentions[index + 1 : index + 2]
        relations = _relations(seen, mention, following[0], novel) if following and not related else []
        related = bool(relations) and rng.random() < 0.75
        if related:
            caption += f" {rng.choice(relations)} "
            continue
        places = _places(seen, mention, size)
        caption += f" {rng.choice(places)}" if places and rng.random() < 0.3 else ""
        if following:
            caption += " and " if index + 2 == len(mentions) or rng.random() < 0.3 else ", "
    rows = {thing: index for index, mention in enumerate(mentions) for thing in mention.things}
    return Prompt(caption + ("." if rng.random() < 0.3 else ""), tuple(phrases)), rows


def _mentions(seen: list[Seen], dialect: Dialect, rng: np.random.Generator) -> list[_Mention]:
    """One to five mentions of different things; every mention holds all the things it is true of."""
    wanted, taken = int(rng.choice([1, 2, 3, 4, 5], p=[0.1, 0.2, 0.3, 0.25, 0.15])), set[int]()
    mentions: list[_Mention] = []
    for index in [*rng.permutation(len(seen)).tolist()] * 3:
        if index in taken or len(mentions) == wanted:
            continue
        traits = {name: seen[index].traits()[name] for name in _chosen(MENTIONS, rng)}
        traits = {name: value for name, value in traits.items() if value not in ("plain", "medium")}
        group = tuple(i for i, one in enumerate(seen) if traits.items() <= one.traits().items())
        singled = _superlative(seen, index, group, rng) if "size" not in traits else ""
        if singled and (taken & set(group) or rng.random() < 0.6):
            mentions.append(_Mention("the", f"{singled} {dialect.noun_phrase(traits)}", (index,)))
        elif not taken & set(group):
            mentions.append(_spoken(traits, group, dialect, rng))
        else:
            continue
        taken |= set(mentions[-1].things)
    return mentions


def _spoken(traits: dict[str, str], group: tuple[int, ...], dialect: Dialect, rng: np.random.Generator) -> _Mention:
    words = dialect.noun_phrase(traits, many=len(group) > 1)
    if len(group) > 1:
        counted = words if rng.random() < 0.15 else f"{COUNTS[len(group)]} {words}"
        return _Mention("the" if rng.random() < 0.2 else "", counted, group)
    return _Mention("the" if rng.random() < 0.25 else _article(words).split()[0], words, group)


def _superlative(seen: list[Seen], index: int, group: tuple[int, ...], rng: np.random.Generator) -> str:
    """What clearly tells one thing from the others of its group, such as "left" or "biggest", or nothing."""
    if len(group) < 2:
        return ""
    boxes = np.array([seen[i].box for i in group])
    x, y, span = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2, boxes[:, 2:] - boxes[:, :2]
    place, area = group.index(index), np.log(span[:, 0] * span[:, 1])
    pair = len(group) == 2
    words = []
    for values, margin, low, high in (
        (x, 24.0, "left" if pair else "far left", "right" if pair else "far right"),
        (y, 24.0, "upper" if pair else "topmost", "lower" if pair else "bottommost"),
        (area, 0.5, "smaller" if pair else "smallest", "bigger" if pair else "biggest"),
    ):
        others = np.delete(values, place)
        words += [low] if values[place] < others.min() - margin else []
        words += [high] if values[place] > others.max() + margin else []
    return str(rng.choice(words)) if words else ""


def _relations(seen: list[Seen], first: _Mention, second: _Mention, novel: bool) -> list[str]:
    """The relations that hold between every thing of the first mention and every thing of the second."""
    pairs = [(seen[i], seen[j], i > j) for i in first.things for j in second.things]
    common = set.intersection(*({*_between(a.box, b.box, later)} for a, b, later in pairs))
    held_out = {
        relation for relation in common if any(is_novel_relation(a.traits(), relation, b.traits()) for a, b, _ in pairs)
    }
    return sorted(held_out if novel else common - held_out)


def _between(a: Box, b: Box, later: bool) -> list[str]:
    """How box ``a`` lies to box ``b``; a thing drawn later is in front."""
    across, down = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    if later and b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]:
        return ["in front of", "on"]
    if abs(across) > 1.3 * abs(down) and (a[2] < b[0] + 4 or b[2] < a[0] + 4):
        return ["to the left of", "left of"] if across < 0 else ["to the right of", "right of"]
    if abs(down) > 1.3 * abs(across) and (a[3] < b[1] + 4 or b[3] < a[1] + 4):
        return ["above", "over"] if down < 0 else ["below", "under"]
    return []


def _places(seen: list[Seen], mention: _Mention, size: tuple[int, int]) -> list[str]:
    """Where in the image a single thing lies, as far as it is plain to see."""
    if len(mention.things) > 1:
        return []
    box = seen[mention.things[0]].box
    x, y = (box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]
    places = {"on the left": x < 0.33, "on the right": x > 0.67, "at the top": y < 0.33, "at the bottom": y > 0.67}
    return [words for words, holds in places.items() if holds]
