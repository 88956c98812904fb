# ruff: noqa: E402
"""`glip serve`: three protocols answer as the Detector does, and a bad request gets one sentence, not a stop."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from PIL import Image

for package in ("fastapi", "uvicorn", "multipart", "prometheus_client", "httpx"):
    pytest.importorskip(package, reason="glip serve needs the extra serve")
import httpx
from starlette.testclient import TestClient

from glip.cli.main import main
from glip.errors import GlipError, ImageError, install_command
from glip.integrations.batching import Batcher
from glip.integrations.guard import Guard, Metrics
from glip.integrations.label_studio_backend import ImageSource
from glip.integrations.messages import Question, to_record
from glip.integrations.serve import create_app
from glip.integrations.serve_options import ServeConfig
from glip.model.adapt import save_adaptation
from glip.structures import Detections, Prompt

NAMES = ["red house", "tree"]
XML = """<View><Image name="img" value="$photo"/><TextArea name="ask" toName="img"/>
<RectangleLabels name="lab" toName="img"><Label value="Red_house"/><Label value="tree" alias="T"/></RectangleLabels>
</View>"""


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def text_of(image: Image.Image) -> str:
    return base64.b64encode(encoded(image)).decode()


@pytest.fixture(scope="module")
def client(detectors):
    limits = ServeConfig(max_mb=0.3, max_pixels=40_000, max_images=3, max_names=50, timeout=20.0)
    with TestClient(create_app(detectors, limits)) as client:
        yield client


@pytest.fixture
def sent(image) -> str:
    return text_of(image)


# ---- plain JSON


def test_detect_answers_as_the_detector(client, detectors, image, sent):
    small = image.resize((60, 90))  # of another padded size, so that it is alone in its pass
    own = [detectors[""](one, NAMES, threshold=0.4, nms=0.5) for one in (image, small)]
    options = {"threshold": 0.4, "nms": 0.5}
    answer = client.post("/detect", json={"image": sent, "names": NAMES, **options}).json()
    assert answer == {"model": "tiny", "results": json.loads(json.dumps([to_record(own[0])]))}
    assert answer["results"][0]["detections"][0]["score"] == own[0].scores[0].item(), "no digit is lost"
    answer = client.post("/detect", json={"images": [sent, text_of(small)], "names": "red house. tree", **options})
    assert answer.json()["results"] == json.loads(json.dumps(list(map(to_record, own))))
    files = [("image", encoded(image)), ("image", encoded(small))]
    form = client.post("/detect", files=files, data={"names": NAMES, "threshold": "0.4", "nms": "0.5"})
    assert form.json() == answer.json()
    broken = client.post("/detect", files={"image": ("a photo.png", encoded(image)[:300])}, data={"names": NAMES})
    assert broken.status_code == 400 and broken.json()["error"].startswith("image 'a photo.png' cannot be read")
    strange = client.post("/detect", files={"photo": encoded(image)}, data={"names": NAMES})
    assert "request.photo: no such key" in strange.json()["error"]


@pytest.mark.parametrize(
    ("request_", "call"),
    [
        ({"caption": "a tree beside a house"}, {"prompt": Prompt.from_caption("a tree beside a house")}),
        ({"task": "plants"}, {}),
        ({"names": NAMES, "threshold": {"tree": 0.6}, "max_detections": 3}, {}),
    ],
)
def test_captions_tasks_and_thresholds(client, detectors, image, sent, request_, call):
    detector = detectors[request_.get("task", "")]
    options = {key: value for key, value in request_.items() if key in ("threshold", "max_detections")}
    prompt = call.get("prompt", request_.get("names"))
    answer = client.post("/detect", json={"image": sent, **request_})
    assert answer.json()["results"] == json.loads(json.dumps([to_record(detector(image, prompt, **options))]))


BAD = {
    "no image": ({"names": "x"}, "got 0 images: send 1 to 3"),
    "many images": ({"images": ["aGk="] * 4, "names": "x"}, "got 4 images"),
    "no base64": ({"image": "!", "names": "x"}, "image 1 is not base64"),
    "a path": ({"image": "/etc/passwd", "names": "x"}, "no path or address is opened"),
    "an address": ({"image": "http://127.0.0.1/a.png", "names": "x"}, "no path or address is opened"),
    "no prompt": ({}, "no prompt: say what to look for"),
    "no names": ({"names": []}, "names nothing"),
    "many names": ({"names": ["x"] * 2000}, "got 2000 texts of 2000 characters: this server reads up to 50 names"),
    "many names in a text": ({"names": "x. " * 51}, "got 51 names"),
    "a long caption": ({"caption": "a dog on " + "qzqz " * 250}, "tokens, the model reads"),
    "names and caption": ({"names": "x", "caption": "a dog"}, "send one of them"),
    "names that are none": ({"names": 5}, "prompt: got 5 (int)"),
    "an unknown field": ({"captoin": "a dog"}, "no such key (did you mean 'caption'?)"),
    "an unknown task": ({"task": "plant"}, "no task 'plant' (did you mean 'plants'?)"),
    "a threshold out of range": ({"names": "x", "threshold": 3}, "threshold: got 3: give a number, 0 or more"),
    "a threshold of another name": ({"names": "x", "threshold": {"y": 0.1}}, "'y' is no phrase of the prompt"),
    "a number that is none": ({"names": "x", "nms": "y" * 9000}, "give a number, 0 or more and at most 1, or null"),
}


def bomb(width: int, height: int) -> str:
    """A small PNG that decompresses to many pixels, or says so."""
    data = bytearray(encoded(Image.new("L", (250, 250)) if width < 40_000 else Image.new("L", (4, 4))))
    if width == 40_000:
        import zlib

        data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return base64.b64encode(bytes(data)).decode()


BAD["too many pixels"] = ({"image": bomb(250, 250), "names": "x"}, "250 x 250 pixels: this server reads up to 40000")


@pytest.mark.unchecked
@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_one_sentence(client, sent, name):
    body, message = BAD[name]
    given = {} if {"image", "images"} & body.keys() or name == "no image" else {"image": sent}
    answer = client.post("/detect", json=given | body)
    assert answer.status_code == 400 and list(answer.json()) == ["error"]
    said = answer.json()["error"]
    assert message in said and len(said) < 950
    assert not any(hint in said for hint in ("Traceback", "File ", ".py", os.getcwd()))
    assert client.post("/detect", json={"image": sent, "names": "tree"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"[" * 100_000, "application/json", 400, "request: not valid JSON"),
        (b"--x\r\nnothing", "multipart/form-data; boundary=x", 400, ""),
        (b"nothing", "multipart/form-data", 400, "boundary"),
        (b"\xff" * 400_000, "application/json", 413, "more than 0.3 MB"),
    ],
)
def test_a_body_that_is_none(client, content, kind, status, message):
    answer = client.post("/detect", content=content, headers={"content-type": kind})
    assert answer.status_code == status and message in answer.json()["error"]


def test_an_error_of_ours_shows_nothing(detectors, sent, monkeypatch):
    monkeypatch.setattr(Batcher, "submit", lambda *_: 1 / 0)
    with TestClient(create_app(detectors, ServeConfig()), raise_server_exceptions=False) as client:
        answer = client.post("/detect", json={"image": sent, "names": "tree"})
        assert (answer.status_code, answer.json()) == (500, {"error": "an error in the server: its log has it"})
        assert client.get("/health").status_code == 200


def test_the_page_loads_nothing_and_figures_are_counted(client, sent):
    page = client.get("/docs").text
    assert "POST /detect" in page and "lowest score" in page and not re.search(r"src=|https?://|<link", page)
    described = client.get("/openapi.json").json()["paths"]["/detect"]["post"]["requestBody"]["content"]
    assert "caption" in described["application/json"]["schema"]["properties"]
    before = client.get("/metrics").text
    client.post("/detect", json={"image": sent, "names": "tree"})
    counted = [
        re.findall(r'path="/detect",status="200"} (\S+)', text) for text in (before, client.get("/metrics").text)
    ]
    assert float(counted[1][0]) == float((counted[0] or ["0"])[0]) + 1
    for path in ("/", "/anything/else"):
        answer = client.get(path)
        assert answer.status_code == 404 and "GET /docs lists" in answer.json()["error"]


# ---- what every endpoint refuses

ASKED = ("/detect", "/v1/predict", "/predict", "/tasks/plants/predict")
POSTED = (*ASKED, "/setup", "/webhook", "/tasks/plants/setup", "/tasks/plants/webhook")


def request_to(path: str, image: str | None, names: str = "tree") -> dict[str, object]:
    """A request of the endpoint's protocol for what a person has written."""
    if path == "/detect":
        return {"image": image, "names": names}
    if path == "/v1/predict":
        return {"model": "tiny", "image": image, "params": {"text_prompt": names}}
    written = {"result": [{"type": "textarea", "from_name": "ask", "value": {"text": [names]}}]}
    tasks = [{"id": 1, "data": {"photo": image and f"data:image/png;base64,{image}"}}]
    return {"tasks": tasks, "label_config": XML, "schema": XML, "params": {"context": written}}


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    ("image_", "names", "message"),
    [
        (None, "tree", "image"),
        ("", "tree", "is not base64"),
        ("broken", "tree", "image in memory cannot be read"),
        ("40,000 x 40,000", "tree", "image in memory is too large"),
        ("sent", "", "names nothing"),
        ("sent", "x" * 2000, "this server reads up to 50 names"),
        ("sent", "x. " * 2000, "this server reads up to 50 names"),
    ],
)
def test_bad_images_and_prompts_of_each_endpoint(client, sent, path, image_, names, message):
    given = {"broken": sent[:400], "40,000 x 40,000": bomb(40_000, 40_000), "sent": sent}
    answer = client.post(path, json=request_to(path, given.get(image_, image_), names))
    assert answer.status_code == 400 and list(answer.json()) == ["error"]
    assert message in answer.json()["error"] and "Traceback" not in answer.text and len(answer.text) < 950
    assert client.post(path, json=request_to(path, sent)).status_code == 200


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize(
    ("headers", "content", "status", "message"),
    [
        ({}, b"{", 400, "request: not valid JSON"),
        ({}, b"[1]", 400, "request: got [1]"),
        ({"content-length": "200000000"}, b"{}", 413, "the request has more than 0.3 MB"),
        ({"content-encoding": "gzip"}, b"{}", 415, "no Content-Encoding"),
        ({"content-type": "application/json; charset=punycode"}, b"{}", 415, "in UTF-8"),
        ({"content-type": "text/plain"}, b"{}", 415, "Content-Type: application/json"),
    ],
)
def test_bad_bodies_of_each_endpoint(client, path, headers, content, status, message):
    answer = client.post(path, content=content, headers={"content-type": "application/json"} | headers)
    assert answer.status_code == status and list(answer.json()) == ["error"] and message in answer.json()["error"]


@pytest.mark.parametrize("path", POSTED)
def test_unknown_fields_of_each_endpoint(client, sent, path):
    """Label Studio and X-AnyLabeling send fields that are not used here; a misspelled one of ours is refused."""
    body = {**request_to(path, sent), "nmaes": 1}
    known = client.post(path, json=body)
    assert known.status_code == {"/detect": 400}.get(path, 201 if path.endswith("webhook") else 200)
    assert path != "/detect" or "request.nmaes: no such key (did you mean 'names'?)" in known.json()["error"]


@pytest.mark.parametrize("path", ASKED)
def test_a_client_of_each_endpoint_that_goes_away(detectors, sent, monkeypatch, path):
    waiting = list[Future]()
    monkeypatch.setattr(Batcher, "submit", lambda *_: waiting.append(Future()) or waiting[0])
    body = json.dumps(request_to(path, sent)).encode()

    async def receive() -> dict:
        if not waiting and body not in seen:
            seen.append(body)
            return {"type": "http.request", "body": body}
        while not waiting:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    seen = list[bytes]()
    assert ask(create_app(detectors, ServeConfig()), receive, path) == (0, "")
    assert waiting[0].cancelled()


# ---- batches


def test_images_of_one_size_share_a_pass_and_prompts_are_encoded_once(detectors, image, monkeypatch):
    """Of eight requests at once, each gets what it gets alone."""
    sizes, encoded_texts, detector = list[int](), list[object](), detectors[""]
    language = detector.model.language.forward
    monkeypatch.setattr(detector.model.language, "forward", lambda *a: encoded_texts.append(a) or language(*a))
    batcher = Batcher(detectors, ServeConfig(wait_ms=500.0), sizes.append)
    images = [image, image.resize((60, 90))] * 4
    prompts = [Prompt.from_names(names) for names in (["tree"], ["red house", "a sun"])]
    asked = [Question(b"", "", prompts[place // 4], {"threshold": 0.1}) for place in range(8)]
    results = [batcher.submit(*one) for one in zip(asked, images, strict=True)]
    found = [result.result(30) for result in results]
    batcher.close()
    assert sizes == [4, 4] and len(encoded_texts) == 2
    for one, photo, question in zip(found, images, asked, strict=True):
        alone = detector(photo, question.prompt, threshold=0.1)
        assert one.labels.tolist() == alone.labels.tolist()
        torch.testing.assert_close(one.boxes, alone.boxes, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(one.scores, alone.scores, atol=1e-5, rtol=1e-5)


def test_a_bad_prompt_fails_alone_and_cancelled_work_is_dropped(detectors, image):
    sizes = list[int]()
    batcher = Batcher(detectors, ServeConfig(wait_ms=300.0, batch_size=3), sizes.append)
    good, long = Prompt.from_names(["tree"]), Prompt("tree " * 400, Prompt.from_names(["tree"]).phrases)
    first, refused, gone = (batcher.submit(Question(b"", "", prompt), image) for prompt in (good, long, good))
    assert gone.cancel()
    assert isinstance(first.result(30), Detections)
    with pytest.raises(GlipError, match="tokens"):
        refused.result(30)
    last = batcher.submit(Question(b"", "", good), image)
    batcher.close()
    assert last.done() and sizes == [2, 1], "what waits is answered before the end"


# ---- the door


def ask(guard: Guard, receive, path: str = "/detect", headers: tuple = ()) -> tuple[int, str]:
    """Status and text of an answer, with the server's side of a connection in our hands; 0 where there is none."""
    answer: list[dict] = []

    async def send(message: dict) -> None:
        answer.append(message)

    headers = (*headers, (b"content-type", b"application/json"))
    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), "query_string": b""}
    asyncio.run(guard(scope, receive, send))
    return (answer[0]["status"] if answer else 0), b"".join(one.get("body", b"") for one in answer).decode()


def guard(app=None, **limits) -> Guard:
    return Guard(app, ServeConfig(**limits), Metrics(), {"/detect"})


async def forever(*_: object) -> dict:
    await asyncio.Event().wait()
    return {}


def test_a_large_body_is_refused_while_it_is_sent():
    parts = list[int]()

    async def receive() -> dict:
        parts.append(10_000)
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": len(parts) < 40}

    status, text = ask(guard(max_mb=0.05), receive)
    assert (status, json.loads(text)) == (413, {"error": "the request has more than 0.05 MB: send less"})
    assert len(parts) == 40, "the rest is read and dropped, so that the client sees the answer"
    status, _ = ask(guard(max_mb=200.0), gone, headers=((b"content-length", b"200000001"),))
    assert status == 413


async def gone() -> dict:
    return {"type": "http.disconnect"}


def test_slow_clients_and_slow_answers_end():
    status, text = ask(guard(timeout=0.05), forever)
    assert status == 408 and "was not sent within 0.05 seconds" in text
    body = [{"type": "http.request", "body": b"{}"}]

    async def receive() -> dict:
        return body.pop() if body else await forever()

    status, text = ask(guard(forever, timeout=0.05), receive)
    assert status == 504 and "no answer within 0.05 seconds" in text


def test_more_requests_than_the_queue_holds_are_turned_away(detectors, sent, monkeypatch):
    held, find = threading.Event(), Batcher._detect
    monkeypatch.setattr(Batcher, "_detect", lambda self, jobs: held.wait(20) and find(self, jobs))
    with TestClient(create_app(detectors, ServeConfig(queue=2))) as client, ThreadPoolExecutor(2) as pool:
        body = {"image": sent, "names": "tree"}
        waiting = [pool.submit(client.post, "/detect", json=body) for _ in range(2)]
        deadline = time.monotonic() + 20
        while "glip_requests_in_progress 2.0" not in client.get("/metrics").text and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = client.post("/detect", json=body)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "busy with 2 requests" in refused.json()["error"] and client.get("/health").status_code == 200
        held.set()
        assert [one.result().status_code for one in waiting] == [200, 200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer secret-1"}, 200),
        ({"Token": "secret-1"}, 200),
        ({"Authorization": "Basic " + base64.b64encode(b"anyone:secret-1").decode()}, 200),
        ({}, 401),
        ({"Authorization": "Bearer secret-2"}, 401),
        ({"Authorization": "Basic !"}, 401),
        ({"Token": ""}, 401),
    ],
)
def test_token(detectors, headers, status):
    with TestClient(create_app(detectors, ServeConfig(token="secret-1"))) as client:
        answers = [client.get("/v1/models", headers=headers)]
        answers += [client.post(path, json={}, headers=headers) for path in POSTED]
        assert all((one.status_code == 401) == (status == 401) for one in answers) and answers[0].status_code == status
        assert status == 200 or "a wrong one" in answers[0].json()["error"]
        assert client.get("/health").status_code == 200, "load balancers have no token"


# ---- X-AnyLabeling


def test_x_anylabeling(client, detectors, image, sent):
    models = client.get("/v1/models").json()["data"]
    assert models["tiny"]["batch_processing_mode"] == "text_prompt" and models["plants"]["classes"] == ["oak", "home"]
    params = {"conf_threshold": 0.0, "iou_threshold": 0.0, "text_prompt": "red house, tree", "epsilon_factor": 0.001}
    request = {"model": "tiny", "image": f"data:image/png;base64,{sent}", "params": params}
    shapes = client.post("/v1/predict", json=request).json()["data"]["shapes"]
    own = detectors[""](image, NAMES)
    assert [one["score"] for one in shapes] == own.scores.tolist() and shapes[0]["label"] == own[0].phrase
    (left, top, right, bottom) = own[0].box
    assert shapes[0]["points"] == [[left, top], [right, top], [right, bottom], [left, bottom]]
    params |= {"conf_threshold": own.scores[2].item()}
    assert len(client.post("/v1/predict", json=request).json()["data"]["shapes"]) == 3
    request = {"model": "plants", "image": sent}
    assert client.post("/v1/predict", json=request).json()["data"]["shapes"][0]["label"] in ("oak", "home")
    request["params"] = {"filter_classes": ["oak"], "current_task": None}
    assert {one["label"] for one in client.post("/v1/predict", json=request).json()["data"]["shapes"]} == {"oak"}
    answer = client.post("/v1/predict", json={"model": "tinny", "image": sent, "params": params})
    assert answer.status_code == 400 and "no task 'tinny'" in answer.json()["error"]


# ---- Label Studio


def test_label_studio_predictions(client, detectors, image, sent):
    assert client.get("/health").json()["status"] == "UP"
    assert client.post("/setup", json={"project": "1.2", "schema": XML}).json() == {"model_version": "tiny"}
    assert client.post("/webhook", json={"action": "START_TRAINING"}).status_code == 201
    tasks = [{"id": 4, "data": {"photo": f"data:image/png;base64,{sent}"}}, {"id": 5, "data": {"photo": "s3://b/x"}}]
    request = {"tasks": tasks, "label_config": XML, "project": "1.2", "params": {"context": None}}
    answer = client.post("/predict", json=request).json()
    prediction, missing = answer["results"]
    assert missing == [] and answer["errors"][0].startswith("task 5: image is not base64")
    own = detectors[""](image, ["Red house", "tree"])
    assert prediction["model_version"] == "tiny" and len(prediction["result"]) == len(own) == 7
    first, (left, top, right, bottom) = prediction["result"][0], own[0].box
    assert first["value"]["rectanglelabels"] == [["Red_house", "T"][own[0].label]] and first["score"] == own[0].score
    assert (first["from_name"], first["to_name"], first["type"]) == ("lab", "img", "rectanglelabels")
    sides = [first["value"][key] for key in ("x", "y", "width", "height")]
    width, height = first["original_width"], first["original_height"]
    assert (width, height) == image.size
    assert sides == pytest.approx(
        [100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height]
    )
    assert client.post("/predict", json={**request, "tasks": tasks[1:]}).status_code == 400, "no task is answered"


def test_label_studio_prompts(client, sent):
    """A TextArea's text, labels in the task's data, and the names of a tuned task."""

    def names(path: str, xml: str, context: object, **data: object) -> set[str]:
        tasks = [{"id": 1, "data": {"photo": f"data:image/png;base64,{sent}", **data}}]
        request = {"tasks": tasks, "label_config": xml, "params": {"context": context}}
        [found] = client.post(path, json=request).json()["results"]
        return {(one["value"]["rectanglelabels"][0], one["meta"]["text"][0]) for one in found["result"]}

    asked = {"type": "textarea", "from_name": "ask", "value": {"text": ["a tree. the sun"]}}
    assert names("/predict", XML, {"result": [asked]}) <= {("T", "a tree"), ("the sun", "the sun")}
    one = XML.replace('<Label value="tree" alias="T"/>', "")
    assert names("/predict", one, {"result": [asked]}) <= {("Red_house", "a tree"), ("Red_house", "the sun")}
    varying = re.sub(r"<Label .*/>", "", XML).replace('name="lab"', 'name="lab" value="$own"')
    assert names("/predict", varying, None, own=[{"value": "sun"}, "moon"]) <= {("sun", "sun"), ("moon", "moon")}
    assert names("/tasks/plants/predict", XML, None) <= {("oak", "oak"), ("home", "home")}
    answer = client.post("/predict", json={"tasks": [{"id": 3, "data": {}}], "label_config": varying})
    assert answer.json()["error"].startswith("task 3: prompt '' names nothing")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<View", "no XML that has RectangleLabels for an Image (unclosed token"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "no XML that has"),
        ('<View><RectangleLabels name="a" toName="b"/></View>', "no XML that has"),
        ('<View><Image value="$a"/><RectangleLabels name="a"/></View>', "no XML that has"),
        (None, "no XML that has"),
    ],
)
def test_labelling_interfaces_that_do_not_fit(client, xml, message):
    answer = client.post("/setup", json={"schema": xml})
    assert answer.status_code == 400 and message in answer.json()["error"]


@pytest.mark.parametrize(
    "link",
    [
        "http://evil.example/data/upload/1/a.png",
        "//evil.example/data/upload/a.png",
        "/api/users",
        "/data/../api/users",
        "/data/%2e%2e/api/users",
        "http://label.example:81/data/upload/a.png",
        "http://label.example@evil.example/data/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        None,
    ],
)
def test_only_images_of_the_named_label_studio_are_fetched(link):
    asked = list[str]()
    with pytest.raises(ImageError, match="is not served by Label Studio"):
        fetch(link, lambda request: asked.append(str(request.url)))
    assert not asked


def fetch(link, answer, key: str = "0a1b") -> bytes:
    """What is read from a Label Studio that gives these answers."""
    source = ImageSource(ServeConfig(label_studio="http://label.example/", max_mb=0.001), key)
    source._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return asyncio.run(source.read(link))


def test_images_are_fetched_with_either_kind_of_token():
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/token/refresh":
            return httpx.Response(200, json={"access": f"short {json.loads(request.content)['refresh']}"})
        known = request.headers.get("authorization") in ("Token 0a1b", "Bearer short a.b.c")
        return httpx.Response(200 if known else 401, content=b"image")

    link = "/data/upload/1/a%20b.png?x=1"
    assert fetch(link, answer) == fetch("http://label.example" + link, answer, "a.b.c") == b"image"
    with pytest.raises(ImageError, match="answers 401 for the image: check its access token"):
        fetch(link, answer, "wrong")
    with pytest.raises(ImageError, match="answers 302"):
        fetch(link, lambda _: httpx.Response(302, headers={"location": "http://evil.example"}))
    with pytest.raises(ImageError, match=r"more than 0\.001 MB"):
        fetch(link, lambda _: httpx.Response(200, content=b"x" * 2000))
    with pytest.raises(ImageError, match="Label Studio cannot be read"):
        fetch("/data/\x01", answer)
    with pytest.raises(ImageError, match="answers 401"):  # instead of a token something else comes
        fetch(link, lambda request: httpx.Response(200 if "token" in request.url.path else 401, json=[]), "a.b.c")
    with pytest.raises(ImageError, match="Label Studio cannot be read"):
        fetch(link, lambda request: httpx.Response(200 if "token" in request.url.path else 401, text="<p>"), "a.b.c")


# ---- the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it: add --token, or --insecure"),
        (["--host", "example.org"], "other machines can reach it"),
        (["--token", "short"], "--token: got 'short': give text of 8 to 1000 characters"),
        (["--port", "70000"], "--port: got 70000: give a whole number, 0 or more and at most 65535"),
        (["--port", "0", "--task", "plants"], "--task plants: give NAME=FILE"),
        (["--port", "0", "--model", "nothing"], "nothing"),
    ],
)
def test_options_that_do_not_fit(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("GLIP_TOKEN", raising=False)
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *arguments])
    assert message in capsys.readouterr().err


def test_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "glip.integrations.serve", None)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "glip.integrations.serve")
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--port", "0"])
    assert install_command("serve") in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_process_answers_and_finishes_what_has_begun(tiny_folder, detectors, image, tmp_path, monkeypatch):
    monkeypatch.undo()  # of the guard against the network: the server is a process of ours
    task = tmp_path / "task.safetensors"
    save_adaptation(task, detectors["plants"].adaptation)
    arguments = ["--model", str(tiny_folder), "--port", "0", "--task", f"plants={task}", "--wait-ms", "1500"]
    process = subprocess.Popen([sys.executable, "-m", "glip", "serve", *arguments], stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        url = re.search(r"http://\S+:\d+", line)[0]
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client, ThreadPoolExecutor(1) as pool:
            for _ in range(100):
                if client.get("/health").json()["status"] == "UP":
                    break
            body = {"image": text_of(image), "task": "plants"}
            assert client.post("/detect", json=body).json()["model"].endswith(" plants")
            waiting = pool.submit(httpx.post, f"{url}/detect", json=body, timeout=60, trust_env=False)
            while "glip_requests_in_progress 1.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert waiting.result().status_code == 200
        assert process.wait(60) == 143
        assert process.stderr.read().strip() == "interrupted: every request that had begun was answered"
    finally:
        process.kill()
