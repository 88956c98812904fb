"""Label Studio's protocol for models ("ML backend"): tasks in, predictions with rectangles out.

What to find comes from the labelling interface, or from a TextArea that a person fills in. Images come in the task as
data URIs, or are fetched from the one Label Studio that the operator has named; no other address is ever opened.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

import httpx

from glip.data.records import as_list, as_map
from glip.errors import GlipError, ImageError
from glip.integrations.messages import decode_image, read_prompt
from glip.integrations.serve_options import ServeConfig
from glip.structures import Detections, Prompt
from glip.text.prompt import clean_name

_RECTANGLE = "rectanglelabels"
_SERVED = re.compile(r"/(?:data/|tasks/\d+/resolve/)[^\s\\]*")  # where Label Studio serves images
_SHOWN = 100  # characters of an address in an error
_LONGEST = 1_000_000  # characters of a labelling interface


class Interface(NamedTuple):
    """The parts of a labelling interface that a prediction needs.

    ``labels`` are pairs of a label's text and the value that its boxes get; ``varying`` is the key of a task's data
    that has them instead. ``texts`` are the names of its TextAreas.
    """

    image: str
    from_name: str
    to_name: str
    labels: tuple[tuple[str, str], ...]
    varying: str
    texts: frozenset[str]


def read_interface(config: Any) -> Interface:
    """The interface from its XML.

    Raises:
        GlipError: not XML, or no RectangleLabels for an Image.
    """
    text, problem, tag, images = config if isinstance(config, str) else "", "", None, dict[str, str]()
    try:
        if "<!DOCTYPE" not in text and "<!ENTITY" not in text and len(text) <= _LONGEST:
            root = ElementTree.fromstring(text)  # no DOCTYPE, so nothing expands  # nosec B314
            images = {name: tag.get("value", "") for tag in root.iter("Image") if (name := tag.get("name"))}
            tag = next((tag for tag in root.iter("RectangleLabels") if tag.get("toName") in images), None)
    except ElementTree.ParseError as error:
        problem = f" ({error})"
    if tag is None:
        raise GlipError(f"label_config: no XML that has RectangleLabels for an Image{problem}: send the project's")
    values = [(one.get("value", ""), one.get("alias", one.get("value", ""))) for one in tag.iter("Label")]
    texts = frozenset(area.get("name", "") for area in root.iter("TextArea"))
    own, to_name, varying = tag.get("name", ""), tag.get("toName", ""), tag.get("value", "").removeprefix("$")
    return Interface(images[to_name].removeprefix("$"), own, to_name, tuple(values), varying, texts)


def task_labels(interface: Interface, task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The labels of a task: those of the interface and, where its data has labels, those."""
    listed = as_list(as_map(task.get("data")).get(interface.varying)) if interface.varying else []
    own = [item.get("value") if isinstance(item, dict) else item for item in listed]
    return [*interface.labels, *((text, text) for text in own if isinstance(text, str))]


def read_task_prompt(
    interface: Interface, labels: Sequence[tuple[str, str]], context: Any, tuned: Sequence[str], limits: ServeConfig
) -> Prompt | None:
    """What a person wrote into a TextArea, else the labels; None where a task of glip tune has names of its own.

    Raises:
        GlipError: neither, or a bad prompt.
    """
    for item in map(as_map, as_list(as_map(context).get("result"))):
        if item.get("type") == "textarea" and item.get("from_name") in interface.texts:
            written = as_map(item.get("value")).get("text")
            return read_prompt(" ".join(map(str, written)) if isinstance(written, list) else written, None, limits)
    if tuned:
        return None
    return read_prompt([clean_name(text) or text for text, _ in labels], None, limits)


def to_prediction(
    found: Detections, interface: Interface, labels: Sequence[tuple[str, str]], names: Sequence[str], version: str
) -> dict[str, Any]:
    """Detections as a prediction; ``names`` are those of the prompt's phrases.

    A box gets the label of its name; where no label has that name, the only label, else the name itself.
    """
    height, width = found.size
    known = {_without_article(key): value for text, value in labels for key in (value, clean_name(text), text)}
    result = []
    for (left, top, right, bottom), score, label, _ in found:
        name = known.get(_without_article(names[label]), labels[0][1] if len(labels) == 1 else names[label])
        value = {
            "x": 100 * left / width,
            "y": 100 * top / height,
            "width": 100 * (right - left) / width,
            "height": 100 * (bottom - top) / height,
            "rotation": 0,
            _RECTANGLE: [name],
        }
        item = {"id": uuid.uuid4().hex[:10], "type": _RECTANGLE, "score": score, "value": value}
        item |= {"from_name": interface.from_name, "to_name": interface.to_name, "meta": {"text": [names[label]]}}
        result.append(item | {"original_width": width, "original_height": height, "image_rotation": 0})
    mean = sum(found.scores.tolist()) / max(len(found), 1)
    return {"result": result, "score": mean, "model_version": version}


def _without_article(name: str) -> str:
    """A name without its article and its case: "A car" is the label "car"."""
    return re.sub(r"^(?:an?|the)\s+", "", name.strip().casefold())


class ImageSource:
    """Images of tasks: in the task itself, or fetched from the one Label Studio of ``--label-studio``."""

    def __init__(self, limits: ServeConfig, key: str) -> None:
        self._address, self._key, self._limits = (limits.label_studio or "").rstrip("/"), key, limits
        self._headers: dict[str, str] = {}
        self._client = httpx.AsyncClient(trust_env=False, timeout=limits.timeout)  # follows no redirects

    async def read(self, link: Any) -> bytes:
        """The bytes of an image.

        Raises:
            ImageError: an address that is not Label Studio's, or an image that it does not give.
        """
        text = link if isinstance(link, str) else ""
        path = text.removeprefix(self._address)
        if text.startswith("data:") or not self._address:
            return decode_image(text)
        found: bytes | str = f"image {text[:_SHOWN]!r} is not served by Label Studio: upload it there"
        if _SERVED.fullmatch(path) and ".." not in unquote(path.partition("?")[0]):
            try:
                found = await self._fetch(path)
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # the last of an answer that is no JSON
                found = f"Label Studio cannot be read ({type(error).__name__}): check its address and access token"
        if isinstance(found, str):
            raise ImageError(found)
        return found

    async def _fetch(self, path: str) -> bytes | str:
        """The content at a path, or what is wrong."""
        status, content = await self._get(path)
        if status == httpx.codes.UNAUTHORIZED:
            self._headers = {"Authorization": await self._authorization()}
            status, content = await self._get(path)
        if status != httpx.codes.OK:
            return f"Label Studio answers {status} for the image: check its access token"
        small = len(content) <= self._limits.max_mb * 1e6
        return content if small else f"image of more than {self._limits.max_mb:g} MB: --max-mb allows larger ones"

    async def _get(self, path: str) -> tuple[int, bytes]:
        """Status and content; of a content over the limit not much more than that."""
        content = bytearray()
        async with self._client.stream("GET", self._address + path, headers=self._headers) as answer:
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > self._limits.max_mb * 1e6:
                    break
        return answer.status_code, bytes(content)

    async def _authorization(self) -> str:
        """A personal access token is exchanged for one of minutes; a legacy token is sent as it is."""
        if self._key.count(".") != 2:
            return f"Token {self._key}"
        answer = await self._client.post(f"{self._address}/api/token/refresh", json={"refresh": self._key})
        return f"Bearer {as_map(answer.json()).get('access')}" if answer.is_success else ""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
