"""For ``torture.py``: blows on ``glip serve`` and on the page of ``glip demo``.

Slow, many and half-open clients, bombs as uploads, signals under load.

After each blow the same command starts again on the same port and answers as before. *Lost* are requests that a server
had accepted and did not answer before it ended by SIGTERM or SIGINT, *wrong* other answers than the first, answers that
are cut, refusals without a sentence and other ends, *left over* processes that outlive the server, and temporary files
that the next one does not delete.
"""

import base64
import gzip
import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torture_parts import PATIENCE, Count, Run, Verb

Answer = tuple[int, bytes]  # status, body; (0, b"") of a connection that ends before
JSON = {"Content-Type": "application/json"}
LIMITS = ("--timeout=5", "--max-mb=2", "--max-pixels=2000000", "--wait-ms=20")
CLIENTS = 6
MANY, SLOW = 500, 12  # connections
_NUMBER = re.compile(rb"-?\d+\.\d+(?:e-?\d+)?")
MOST_MB = 1500.0  # that bombs may add to the memory


class Served:
    """A server, what it answers without disturbance, and the blows' counts."""

    name, health, lost, most = "serve", "/health", (0, b""), 2 * CLIENTS  # requests that can be inside at once

    def __init__(self, verb: Verb, place: Path, seed: int) -> None:
        self.verb, self.folder, self.random = verb, place / self.name, random.Random(seed)
        self.counts = dict[str, Count]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.arguments = [*map(str, verb.arguments(place / "inputs")), f"--port={self.port}", *LIMITS]
        image = base64.b64encode((place / "inputs" / "coco" / "images" / "0.png").read_bytes()).decode()
        self.body = json.dumps({"image": image, "names": "red circle. blue star", "threshold": 0}).encode()
        self.expected: Answer = (0, b"")
        server = self.start()
        self.expected = self.ask()
        assert self.expected[0] == 200, self.expected
        end(server, signal.SIGTERM)

    def start(self) -> Run:
        """The server in a process of its own, once it answers; its temporary files are in a folder of their own."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        run = Run(self.verb, self.folder, self.arguments, number=len(list(self.folder.glob("*.log"))))
        run.start(partial(setattr, tempfile, "tempdir", str(self.folder / "tmp")))
        began = time.monotonic()
        while self.ask("GET", self.health)[0] != 200:
            assert time.monotonic() - began < PATIENCE and not os.waitpid(run.pids[0], os.WNOHANG)[0], run.words()
            time.sleep(0.05)
        return run

    def ask(self, method: str = "POST", path: str = "/detect", body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body or self.body, JSON | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.RemoteDisconnected):
            return 0, b""
        finally:
            connection.close()

    def inside(self) -> int:
        """How many requests the server is known to have accepted and not answered."""
        busy = re.search(rb"glip_requests_in_progress (\d+)", self.ask("GET", "/metrics")[1])
        return int(busy[1]) if busy else 0

    def strike(self, blow: str) -> None:
        """A server, one blow, its end, and the next server."""
        count = self.counts.setdefault(blow, Count())
        count.tried += 1
        run = self.start()
        try:
            SERVER_BLOWS[blow](self, run, count)
            self.check(count)
        except Exception as error:
            count.wrong += 1
            count.problems.append(f"{self.name}, {blow}: {type(error).__name__}: {error}; {run.words()[-500:]}")
        end(run, signal.SIGKILL)
        if "Traceback" in run.words():
            count.wrong += 1
            count.problems.append(f"{self.name}, {blow}: {run.words()[-1000:]}")
        count.left += len(session(run.pids[0]))
        try:
            again = self.start()
            self.check(count)
            end(again, signal.SIGTERM)
            count.resumed += 1
        except Exception as error:
            count.problems.append(f"{self.name}, {blow}, started again: {error}")
        count.left += len(list((self.folder / "tmp").iterdir()))
        shutil.rmtree(self.folder)

    def is_right(self, answer: Answer) -> bool:
        """Whether an answer is that of the start, but for the last digits of numbers: images may share a pass."""
        (status, body), (expected, wanted) = answer, self.expected
        numbers, own = ([float(one) for one in _NUMBER.findall(text)] for text in (body, wanted))
        alike = _NUMBER.sub(b"", body) == _NUMBER.sub(b"", wanted) and np.allclose(numbers, own, atol=1e-3)
        return status == 0 or (status == expected and alike)

    def check(self, count: Count) -> None:
        """A good request is answered as at first, unless the server has ended."""
        found = self.ask()
        if not self.is_right(found):
            count.wrong += 1
            count.problems.append(f"{self.name}: answers {found}")


class Page(Served):
    """The same for the page: a question is an upload, a place in the queue and the stream of its events."""

    name, health = "demo", "/config"
    lost = (0, b"cut")  # a question whose stream had begun, not before
    most = CLIENTS // 2  # the others upload their image

    def __init__(self, verb: Verb, place: Path, seed: int) -> None:
        self.streams = set[str]()  # that clients read
        super().__init__(verb, place, seed)

    def inside(self) -> int:
        """As of a server; the stream of each is known to be there."""
        return len(self.streams)

    def ask(self, method: str = "POST", path: str = "/detect", body: bytes | None = None, **headers: str) -> Answer:
        """What a browser does for a body of ``glip serve``; gives the table, or the error."""
        if path != "/detect" or headers:
            return super().ask(method, path.replace("/detect", "/gradio_api/upload"), body, **headers)
        asked = json.loads(body or self.body)
        part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        form = part + base64.b64decode(asked["image"]) + b"\r\n--b--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        status, text = super().ask("POST", "/gradio_api/upload", form, **kind)
        if status != 200:
            return status, text
        image, name = {"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}}, f"{random.random()}"
        words = [image, asked["names"], "names", 0]
        join = json.dumps({"data": words, "fn_index": 0, "session_hash": name}).encode()
        status, text = super().ask("POST", "/gradio_api/queue/join", join)
        return self._stream(name) if status == 200 else (status, text)

    def _stream(self, name: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={name}")
            answer = connection.getresponse()
            self.streams.add(name)
            last = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
        except (OSError, http.client.HTTPException):
            return self.lost if name in self.streams else (0, b"")
        finally:
            self.streams.discard(name)
            connection.close()
        done = next((one for one in last if one["msg"] == "process_completed"), None)
        if not done:
            return self.lost
        data = done["output"]["data"][4]["data"] if done["success"] else done["output"]
        return (200 if done["success"] else 422), json.dumps(data).encode()


def end(run: Run, number: int) -> int:
    """Send a signal; gives the exit code, also where the server had ended before."""
    with suppress(ProcessLookupError):
        os.kill(run.pids[0], number)
    with suppress(ChildProcessError):
        return run.wait()[0]
    return 0


def session(process: int) -> list[int]:
    """The processes of the session that a process began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[3] == str(process):
                found.append(int(path.parent.name))
    return found


# ---- blows


def under_load(number: int, served: Served, run: Run, count: Count) -> None:
    """A signal while clients ask; those whose requests are known to have been accepted wait for their answers."""
    answers, stop = list[Answer](), threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            answers.append(served.ask())

    clients = [threading.Thread(target=ask_on) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(served.random.uniform(0.2, 2.0))
    held: list[Answer] = []
    accepted = [threading.Thread(target=lambda: held.append(served.ask())) for _ in range(CLIENTS)]
    for one in accepted:
        one.start()
    began = time.monotonic()
    while number != signal.SIGKILL and time.monotonic() - began < PATIENCE:
        if served.inside() >= served.most:
            break
        time.sleep(0.002)
    stop.set()
    os.kill(run.pids[0], number)
    for client in (*clients, *accepted):
        client.join(PATIENCE)
    code = end(run, 0)
    assert code == (-number if number == signal.SIGKILL else 128 + number), f"it ended with {code}"
    last = answers[-CLIENTS:] + held
    count.lost += last.count(served.lost) if number != signal.SIGKILL else 0
    wrong = [one for one in (*answers, *held) if not served.is_right(one)]
    assert not wrong, f"answers {wrong[:2]}"


def slow_clients(served: Served, run: Run, count: Count) -> None:
    """Clients that send a byte a second, of a head or of a body: they are let go, and others are answered meanwhile."""
    head = b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 900\r\n"
    began, open_ = time.monotonic(), dict[socket.socket, bytes]()
    with ExitStack() as stack:
        for number in range(SLOW):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            connection.setblocking(False)
            open_[connection] = (head + b"\r\n" if number % 2 else b"") + b"POST /detect HTTP/1.1\r\nX: " + b"a" * 900
            if number % 2:
                connection.send(head + b"\r\n")
        place = 0
        while open_ and time.monotonic() - began < PATIENCE / 4:
            for connection in list(open_):
                try:
                    connection.send(open_[connection][place : place + 1])
                    closed = connection.recv(4096) == b""
                except BlockingIOError:
                    closed = False
                except OSError:
                    closed = True
                if closed:
                    del open_[connection]
            place += 1
            served.check(count)
            time.sleep(1)
    assert not open_, f"{len(open_)} slow clients are still there after {place} seconds"


def many_connections(served: Served, run: Run, count: Count) -> None:
    """Connections that send nothing, or half a request, and are never closed: others are answered all the same."""
    fds = Path(f"/proc/{run.pids[0]}/fd")
    before = len(list(fds.iterdir()))
    with ExitStack() as stack:
        for number in range(MANY):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE))
            connection.sendall((b"", b"POST /detect HTTP/1.1\r\nHost: a\r\n")[number % 2])
        for _ in range(5):
            served.check(count)
        began = time.monotonic()
        while len(list(fds.iterdir())) > before + 10 and time.monotonic() - began < PATIENCE / 4:
            time.sleep(0.5)
        assert len(list(fds.iterdir())) <= before + 10, f"{len(list(fds.iterdir()))} files are open, {before} at first"


def bombs(served: Served, run: Run, count: Count) -> None:
    """Small files that are large inside: each is refused in a sentence, or read in little memory."""
    status = Path(f"/proc/{run.pids[0]}/status")

    def peak() -> float:
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1000

    start = peak()
    for name, data, allowed in make_bombs():
        image = base64.b64encode(data).decode()
        body = json.dumps({"image": image, "names": "cat"}).encode()
        code, text = served.ask(body=body)
        refused = 400 <= code < 500 and len(json.loads(text)["error"]) > 10
        assert refused or (allowed and code == 200), f"{name}: {code}, {text[:300]!r}"
    for coding, data in (("gzip", gzip.compress(bytes(10**8))), ("deflate", zlib.compress(bytes(10**8)))):
        code, text = served.ask(body=data, **{"Content-Encoding": coding})
        assert code == 415, f"{coding}: {code}, {text[:300]!r}"
    assert peak() - start < MOST_MB, f"{peak() - start:.0f} MB more"


def make_bombs() -> Iterator[tuple[str, bytes, bool]]:
    """A name, a file, and whether it may be read: formats that state huge sizes, hold many frames or swell inside."""

    def written(form: str, size: tuple[int, int] = (32, 32), mode: str = "RGB", **more: Any) -> bytes:
        stream = io.BytesIO()
        Image.new(mode, size).save(stream, form, **more)
        return stream.getvalue()

    def png(*chunks: tuple[bytes, bytes]) -> bytes:
        parts = [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    small, swollen = zlib.compress(bytes(33 * 32)), zlib.compress(bytes(10**8))
    head, last = struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0), (b"IEND", b"")
    for side in (40_000, 2**31 - 1):
        yield (
            f"PNG of {side}",
            png((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", small), last),
            False,
        )
    yield "PNG, 5000 x 5000 in 1 bit", written("PNG", (5000, 5000), "1"), False
    yield "PNG, pixels that swell", png((b"IHDR", head), (b"IDAT", swollen), last), True
    yield "PNG, text that swells", png((b"IHDR", head), (b"zTXt", b"a\0\0" + swollen), (b"IDAT", small), last), True
    yield "PNG, profile that swells", png((b"IHDR", head), (b"iCCP", b"a\0\0" + swollen), (b"IDAT", small), last), True
    frames = [Image.fromarray(np.full((32, 32), number, np.uint8)) for number in range(200)]
    for form in ("GIF", "PNG", "TIFF", "WEBP"):
        yield f"{form}, 200 frames", written(form, mode="L", save_all=True, append_images=frames), True
    tiff = written("TIFF")
    for tag in (256, 257):  # width, height
        entry = (
            tiff.index(struct.pack("<HH", tag, 4))
            if struct.pack("<HH", tag, 4) in tiff
            else tiff.index(struct.pack("<HH", tag, 3))
        )
        tiff = tiff[:entry] + struct.pack("<HHII", tag, 4, 1, 40_000) + tiff[entry + 12 :]
    yield "TIFF of 40,000", tiff, False
    ring = bytearray(written("TIFF"))
    place = struct.unpack("<I", ring[4:8])[0]
    entries = struct.unpack("<H", ring[place : place + 2])[0]
    ring[place + 2 + 12 * entries : place + 6 + 12 * entries] = struct.pack("<I", place)
    yield "TIFF whose pages are a ring", bytes(ring), True
    webp = bytearray(written("WEBP", lossless=True))
    webp[webp.index(b"VP8L") + 9 : webp.index(b"VP8L") + 13] = struct.pack("<I", 16_382 | 16_382 << 14)
    yield "WebP of 16,383", bytes(webp), False
    gif = bytearray(written("GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield "GIF of 65,535", bytes(gif), False
    for form in ("AVIF", "HEIF"):
        with suppress(KeyError, OSError):  # not installed
            data = written(form)
            size = data.index(b"ispe") + 8
            yield f"{form} of 40,000", data[:size] + struct.pack(">II", 40_000, 40_000) + data[size + 8 :], False


SERVER_BLOWS: dict[str, Callable[[Served, Run, Count], None]] = {
    "kill": partial(under_load, signal.SIGKILL),
    "term": partial(under_load, signal.SIGTERM),
    "int": partial(under_load, signal.SIGINT),
    "slow clients": slow_clients,
    "many connections": many_connections,
    "bombs": bombs,
}
