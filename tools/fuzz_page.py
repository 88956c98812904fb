"""Broken requests to the page of ``glip demo``: a kind of ``fuzz_kinds.py``, which ``fuzz.py`` adds."""

import functools
import json
import random
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote

from fuzz_doors import check, exchange, send
from fuzz_kinds import ODD, TEXTS, Read, encoded_images, mutate_bytes

from glip.errors import GlipError

API = "/gradio_api"
_OTHERS = ["/", "/config", f"{API}/info", f"{API}/file=/etc/passwd", f"{API}/proxy=http://a/", f"{API}/vibe-code/"]
_OTHERS += [f"{API}/call/detect", f"{API}/upload_progress?upload_id=x", f"{API}/reset", f"{API}/cancel", "/assets/../x"]
_OTHERS += [f"{API}/file=../../x", f"{API}/file=%00", f"{API}/run/detect", f"{API}/upload", "/static/%2e%2e/x", "//"]


def read_page(rng: random.Random, folder: Any) -> None:
    """A question or a move of the slider with broken values, JSON, uploads, heads or bytes, and the events of it."""
    image = rng.choice(_uploads()) if rng.random() < 0.8 else rng.choice(ODD)
    words = rng.choice(("cat. dog", "a cat and a dog", "", rng.choice(TEXTS)))
    kind, name = rng.choice(("names", "a sentence")), f"s{rng.random()}"
    asked, moved = [image, words, kind, rng.choice((0.05, 0.5, 0.5, 2))], [None, rng.choice((0.5, 0, "x"))]
    place = rng.choice((0, 0, 0, 0, 1, 2, 2, 7))
    tree = {"data": {1: [], 2: moved}.get(place, asked), "fn_index": place, "session_hash": name}
    request, found = exchange(rng, "demo", f"{API}/queue/join", tree, _OTHERS, f"{API}/upload")
    check(*found)
    if b"event_id" not in found[2] or f'"session_hash": "{name}"'.encode() not in request:
        return
    status, _, events = send(_request("GET", f"{API}/queue/data?session_hash={quote(name)}"), "demo")
    assert status == 200, status
    for line in events.decode().splitlines():
        event = json.loads(line.removeprefix("data: "), parse_constant=lambda name: 1 / 0) if line else {}
        if event.get("msg") == "process_completed" and not event["success"]:
            said = event["output"]["error"]
            assert said, "an exception that is no sentence"
            raise GlipError(said)


def _request(method: str, path: str, kind: str = "text/plain", body: bytes = b"") -> bytes:
    head = {"Host": "a", "Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@functools.cache
def _uploads() -> list[dict[str, Any]]:
    """Uploaded images as a browser names them afterwards: whole ones, broken ones, and paths that are none."""
    rng, found = random.Random(0), list[dict[str, Any]]()
    for number, (form, data) in enumerate(encoded_images()):
        sent = data if number % 3 else mutate_bytes(rng, data)
        part = f'--b\r\nContent-Disposition: form-data; name="files"; filename="a.{form}"\r\n\r\n'.encode()
        body = _request("POST", f"{API}/upload", "multipart/form-data; boundary=b", part + sent + b"\r\n--b--\r\n")
        [path] = json.loads(send(body, "demo")[2])
        found.append({"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": rng.choice(TEXTS)})
    return [*found, {"path": "/etc/passwd"}, {"path": f"{found[0]['path']}/../../x"}, {"url": "http://127.0.0.1:1/"}]


PAGE: dict[str, Read] = {"page": read_page} if find_spec("gradio") else {}
