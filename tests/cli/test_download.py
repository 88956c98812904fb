"""Images by URL: only where allowed, only https but for this machine, up to a size, within a time."""

import _socket
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from glip.data import download
from glip.data.image import load_image, open_any
from glip.errors import ImageError


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (250, 0, 0)).save(file, "PNG")
    return file.getvalue()


class Answers(BaseHTTPRequestHandler):
    """What a test server says to each path."""

    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        moved = {"file": "file:///etc/hosts", "plain": "http://example.com/a.png", "data": "data:,x"}
        self.send_response({"missing": 404, "moved": 302}.get(kind, 200))
        if kind == "moved":
            self.send_header("Location", moved[rest])
        if kind == "short":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        with suppress(OSError):  # the client has heard enough
            for _ in range({"slow": 200, "large": 10**6}.get(kind, 0)):
                self.wfile.write(b"x" * (1 if kind == "slow" else 5000))
                time.sleep(0.05 if kind == "slow" else 0)
            self.wfile.write(png() if kind == "image" else b"hello")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    """A server of this machine, which tests may connect to here."""

    def connect(self, address):
        assert address[0] == "127.0.0.1", address
        return _socket.socket.connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_an_image_is_downloaded_where_that_is_allowed(server):
    assert load_image(f"{server}/image", allow_download=True).size == (30, 20)
    for read in (load_image, open_any):
        with pytest.raises(ImageError, match=r"image 'http.*' is a URL, and glip downloads nothing by itself: pass "):
            read(f"{server}/image")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", "cannot be downloaded: the server answers 404 Not Found: check the URL"),
        ("text", "is not an image that Pillow can read"),
        ("large", "is larger than 0.004 MB: download it yourself and give the file"),
        ("slow", "took more than 0.3 s to download"),
        ("moved/file", "cannot be downloaded: the server answers 302 Found - Redirection to url 'file:///etc/hosts'"),
        ("moved/plain", "leads to 'http://example.com/a.png': only https is downloaded"),
        ("moved/data", "cannot be downloaded: the server answers 302 Found - Redirection to url 'data:,x' is not"),
    ],
)
def test_what_goes_wrong_is_one_sentence(path, words, server, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 4000)
    monkeypatch.setattr(download, "_SECONDS", 0.3 if path == "slow" else 6)
    start = time.monotonic()
    with pytest.raises(ImageError) as wrong:
        load_image(f"{server}/{path}", allow_download=True)
    assert time.monotonic() - start < 6
    assert str(wrong.value).startswith(f"image '{server}/{path}' {words}")


def test_the_command_line_downloads_on_request(server, command_line, model, tmp_path):
    arguments = ("detect", f"{server}/image", f"{server}/missing", "dog", "--model", model, "--device", "cpu")
    code, out, err = command_line(*arguments)
    assert code == 2 and out == "" and err.count(" is a URL, and glip downloads nothing by itself: pass --allow-d") == 2
    code, out, err = command_line(*arguments, "--allow-download", "--format", "csv")
    assert code == 2 and out.startswith("1 image, ") and err.endswith("1 of 2 images could not be read\n")
    table = (tmp_path / "out/results/detections.csv").read_text()
    assert (tmp_path / "out/image.png").is_file() and f"{server}/image" in table
    code, _, err = command_line(*arguments, "--format", "labels")
    assert code == 2 and f"--format labels is for image files, and '{server}/image' is none" in err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/hosts", "leads to 'file:///etc/hosts': only https is downloaded"),
        ("http://example.com/a.png", "leads to 'http://example.com/a.png': only https"),
        ("ftp://localhost/a.png", "only https is downloaded"),
        ("https://127.0.0.1:9/a.png", "cannot be downloaded"),
    ],
)
def test_only_https_is_fetched(url, words):
    with pytest.raises(ImageError) as wrong:
        load_image(url, allow_download=True)
    assert words in str(wrong.value) and url in str(wrong.value)
