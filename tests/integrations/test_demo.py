# ruff: noqa: E402
"""`glip demo`: the page finds what the Detector finds, filters without it, and gives no file of the machine."""

import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest
from PIL import Image
from test_docs import ROOT, blocks, run_shell

for package in ("gradio", "prometheus_client"):
    pytest.importorskip(package, reason="glip demo needs the extra demo")
import httpx
import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from glip.cli.main import main
from glip.errors import install_command
from glip.integrations import demo
from glip.integrations.serve_options import ServeConfig
from glip.lettering import palette
from glip.structures import Prompt

NAMES = ["red house", "tree"]
WORDS = "red house. tree"
HERE = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path_factory) -> None:
    """Gradio's client leaves folders behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))


@pytest.fixture(autouse=True)
def no_network(monkeypatch) -> Iterator[None]:
    """Only this machine is connected to, by Gradio too."""
    connect, strangers = socket.socket.connect, list[object]()

    def only_here(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and address[0] not in HERE:
            strangers.append(address)
            raise OSError("no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    yield
    assert not strangers


@contextmanager
def running(detectors, **limits) -> Iterator[str]:
    """The address of a page, while it is served."""
    limits = {"max_mb": 0.3, "max_pixels": 40_000, "max_names": 50, "timeout": 60.0, **limits}
    server = demo.create_demo(detectors, ServeConfig(**limits))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(detectors) -> Iterator[str]:
    with running(detectors) as url:
        yield url


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def alone(detectors) -> Iterator[str]:
    """A page without tasks."""
    with running({"": detectors[""]}) as url:
        yield url


@pytest.fixture
def upload(image, tmp_path) -> Path:
    image.save(tmp_path / "a photo.png")
    return tmp_path / "a photo.png"


def detect(client: Client, upload: object, words: object, kind: str = "names", threshold: float = 0.05) -> list:
    return client.predict(handle_file(upload) if upload else None, words, kind, threshold, api_name="/detect")


def rows(found) -> list[list[str]]:
    """The table of a page."""
    return [[one.phrase, f"{one.score:.2f}", " ".join(f"{side:.0f}" for side in one.box)] for one in found]


def test_the_slider_filters_and_the_model_is_not_called_again(alone, detectors, image, upload, monkeypatch):
    detector, calls = detectors[""], list[str]()
    own = detector(image, NAMES, threshold=0.05)
    scores = sorted(own.scores.tolist())
    middle = (scores[2] + scores[3]) / 2
    high = detector(image, NAMES, threshold=middle)
    for name in ("_encode_image", "_fuse"):
        compute = getattr(detector, name)
        monkeypatch.setattr(
            detector, name, lambda *given, own=name, compute=compute: calls.append(own) or compute(*given)
        )
    client = Client(alone, verbose=False)
    shown, words, table, *_ = detect(client, upload, WORDS)
    drawn, expected = (np.asarray(one).astype(int) for one in (Image.open(shown), own.draw(image)))
    assert drawn.shape == expected.shape and abs(drawn - expected).mean() < 4, "JPEG"
    assert table["data"] == rows(own) and len(own) > 3 and calls == ["_encode_image", "_fuse"]
    few = client.predict(middle, api_name="/filter")
    assert few[2]["data"] == rows(high) and 0 < len(high) < len(own)
    assert few[0] != shown and len(calls) == 2, "the image is drawn again, nothing is detected again"
    colours = ["#" + bytes(colour).hex() for colour in palette(NAMES)]
    found = {one.label for one in own}
    assert [(one["token"], one["class_or_confidence"]) for one in words["value"] if one["token"] != ". "] == [
        (name, colours[label] if label in found else "#dededa") for label, name in enumerate(NAMES)
    ]


def test_downloads(alone, detectors, image, upload):
    sentence = "a tree beside a house"
    own = detectors[""](image, Prompt.from_caption(sentence), threshold=0.05)
    coco, yolo, plain = map(Path, detect(Client(alone, verbose=False), upload, sentence, "a sentence")[3:])
    one = json.loads(coco.read_text())
    assert one["images"] == [{"id": 1, "file_name": "a photo.png", "width": 150, "height": 110}]
    assert [name["name"] for name in one["categories"]] == ["tree", "house"]
    left, top, right, bottom = own[0].box
    assert one["annotations"][0]["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
    with ZipFile(yolo) as file:
        assert file.read("a photo.txt").decode() == own.to_yolo()
        assert file.read("classes.txt").decode() == "tree\nhouse\n"
    line = json.loads(plain.read_text())
    assert line["caption"] == sentence and len(line["detections"]) == len(own) and line["image"] == "a photo.png"


def test_tasks_are_side_by_side(client, detectors, image, upload):
    """Each column begins with its image; without words the tasks alone are asked."""
    own = [detectors["plants"](image, threshold=0.05), detectors[""](image, NAMES, threshold=0.05)]
    both = detect(client, upload, WORDS)
    assert both[2]["data"] == rows(own[1]) and both[8]["data"] == rows(own[0])
    shown = detect(client, upload, "  ")
    assert not shown[2]["data"] and shown[0] is None and shown[8]["data"] == rows(own[0])


BAD = {
    "no image": (None, WORDS, "no image: upload one, or take one with the webcam"),
    "no words": ("a photo.png", " ", "prompt '' names nothing"),
    "many names": ("a photo.png", "x. " * 2000, "characters: this server reads up to 50 names"),
    "a long sentence": ("a photo.png", "a dog on " + "qzqz " * 250, "tokens, the model reads"),
    "HTML": ("a photo.png", "<b>" + "qzqz " * 250, "begins '&lt;b&gt;qzqz"),
    "no text": ("a photo.png", 5, "prompt: got 5 (int)"),
    "text as image": ("text.png", WORDS, "is not an image that Pillow can read"),
    "half an image": ("half.png", WORDS, "cannot be read (image file is truncated"),
    "many pixels": ("large.png", WORDS, "image has 250 x 250 pixels: this server reads up to 40000"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(alone, upload, name, capfd):
    file, words, message = BAD[name]
    upload.with_name("text.png").write_text("no image")
    upload.with_name("half.png").write_bytes(upload.read_bytes()[:2000])
    Image.new("L", (250, 250)).save(upload.with_name("large.png"))
    kind = "a sentence" if "qzqz" in str(words) else "names"
    with pytest.raises(AppError) as caught:
        detect(Client(alone, verbose=False), file and upload.with_name(file), words, kind)
    said = str(caught.value)
    assert message in said and "\n" not in said and "glip-demo-" not in said
    assert "Traceback" not in capfd.readouterr().err


BROKEN = (
    {"fn_index": 7},
    {"fn_index": True},
    {"data": [None]},
    {"data": None},
    {"session_hash": 5},
    {"session_hash": ""},
    {"fn_index": 2, "data": [None, "x"]},
)


def event(changed: dict[str, object]) -> bytes:
    return json.dumps({"data": [None, WORDS, "names", 0.5], "fn_index": 0, "session_hash": "x", **changed}).encode()


def test_no_file_and_no_address_is_opened(alone, upload, tmp_path):
    """Neither by its path in a request, nor by the routes of Gradio, of which only those of the page are there."""
    with httpx.Client(base_url=alone, trust_env=False) as web:
        api = "/gradio_api"
        [own] = web.post(f"{api}/upload", files={"files": upload.read_bytes()}).json()
        assert web.get(f"{api}/file={own}").content == upload.read_bytes()
        folder = Path(own).parents[1]
        Path(folder, "link").symlink_to(upload)
        for path in (
            "/etc/passwd",
            str(upload),
            f"{folder}/../../etc/passwd",
            f"{folder}/link",
            "http://127.0.0.1:1/a",
        ):
            sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
            for given in ([sent, WORDS, "names", 0.5], [None, sent, "names", 0.5]):
                body = {"data": given, "fn_index": 0, "session_hash": "x"}
                answer = web.post(f"{api}/queue/join", json=body)
                assert answer.status_code == 403 and "no other path or address is opened" in answer.json()["error"]
            assert web.get(f"{api}/file={path}").status_code == 404
        for path in (
            "file=%00",
            "proxy=http://127.0.0.1:1/",
            "vibe-code/",
            "runs",
            "monitoring",
            "call/detect/x",
            "../docs",
        ):
            assert web.get(f"{api}/{path}").status_code == 404
        assert web.post(f"{api}/upload", files={"files": b"x" * 400_000}).status_code == 413
        for body in (b"[" * 9000, b'{"data": [NaN]}', *map(event, BROKEN)):
            answer = web.post(f"{api}/queue/join", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400 and "not a request of the page" in answer.json()["error"]
        long = {"content-type": f"multipart/form-data; boundary={'b' * 300}"}
        assert web.post(f"{api}/upload", content=b"--b--", headers=long).status_code == 400


def test_two_people_get_their_own_results(alone, detectors, image, upload):
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other := upload.with_name("other.png"))
    asked = [(upload, "tree"), (other, "a sun. a moon. a cat")] * 2
    people = [Client(alone, verbose=False) for _ in asked]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda client, one: detect(client, *one), people, asked))
        tables = list(pool.map(lambda client: client.predict(0.05, api_name="/filter")[2]["data"], people))
    wanted = [rows(detectors[""](Image.open(file), words, threshold=0.05)) for file, words in asked]
    assert [[row[0] for row in table] for table in tables] == [[row[0] for row in one] for one in wanted]
    assert tables[0] == tables[2] != tables[1] == tables[3]


def test_uploads_are_removed(detectors, upload, monkeypatch):
    """After a while, and all with the end of the server."""
    monkeypatch.setattr(demo, "_KEPT", 1)
    monkeypatch.setattr(demo, "_SWEPT", 0.1)
    with running({"": detectors[""]}) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as web:
        [sent] = web.post("/gradio_api/upload", files={"files": upload.read_bytes()}).json()
        own, folder, deadline = Path(sent), Path(sent).parents[1], time.monotonic() + 30
        (folder / "a" / "folder").mkdir(parents=True)  # what cannot be deleted keeps nothing else
        os.utime(folder / "a" / "folder", (0, 0))
        while own.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not own.exists() and folder.stat().st_mode & 0o77 == 0
        image = {"path": sent, "meta": {"_type": "gradio.FileData"}, "orig_name": "a photo.png"}
        body = {"data": [image, WORDS, "names", 0.5], "fn_index": 0, "session_hash": "x"}
        assert web.post("/gradio_api/queue/join", json=body).status_code == 200
        assert "upload it again" in web.get("/gradio_api/queue/data", params={"session_hash": "x"}).text
    assert not folder.exists()


def test_a_token_is_the_password(detectors):
    with running(detectors, token="secret-1") as url:
        assert httpx.get(url, trust_env=False).status_code == 401
        assert httpx.get(url, trust_env=False, auth=("me", "secret-1")).status_code == 200


# ---- in a browser


@pytest.fixture
def browser() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


def ask(browser, url: str, upload: Path, size: tuple[int, int]):
    """A page on which the words were asked; it loads nothing from elsewhere."""
    page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)))
    page.set_default_timeout(120_000)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    hosts = set[str]()
    page.goto(url)
    page.locator("input[type=file]").first.set_input_files(upload)
    page.get_by_label("What to find").fill(WORDS)
    page.get_by_label("Remove Image").wait_for()  # uploaded
    page.get_by_role("button", name="Detect", exact=True).click()
    page.get_by_alt_text("the image with boxes").first.wait_for()
    assert hosts == {url.split("/")[2]}
    return page


@pytest.mark.slow
def test_the_page_shows_what_is_found_and_the_slider_removes_it(browser, alone, detectors, image, upload):
    best = detectors[""](image, NAMES, threshold=0.05)[0]
    page = ask(browser, alone, upload, (1200, 900))
    row = page.get_by_text(f"{best.score:.2f}", exact=True).locator("visible=true").first
    row.wait_for()
    slider = page.get_by_label("number input for Lowest score")
    slider.fill("1")
    slider.press("Enter")
    row.wait_for(state="hidden")
    with page.expect_download() as started:
        page.get_by_role("button", name="JSON").or_(page.get_by_role("link", name="JSON")).first.click()
    assert json.loads(Path(started.value.path()).read_text())["detections"] == []
    page.get_by_label("What to find").fill("")
    page.get_by_role("button", name="Detect", exact=True).click()
    page.get_by_text("names nothing").wait_for()


@pytest.mark.slow
def test_a_phone_scrolls_down_only(browser, url, upload):
    page = ask(browser, url, upload, (390, 844))
    assert page.get_by_text("plants", exact=True).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


# ---- the command


@pytest.mark.parametrize("verb", ["serve", "demo"])
def test_a_port_in_use_is_one_sentence(verb, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match="2"):
            main([verb, "--port", str(port)])
    said = f"glip {verb}: --port {port}: cannot listen there on 127.0.0.1 (Address already in use): give another, or 0"
    assert capsys.readouterr().err.startswith(said)


def test_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "glip.integrations.demo")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--port", "0"])
    assert f"gradio is not installed: {install_command('demo')}" in capsys.readouterr().err


@pytest.mark.slow
def test_docs(tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8").split("\n## A page: `glip demo`\n")[1]
    for block in blocks(text.split("\n## ")[0]):
        run_shell(block, tmp_path)
