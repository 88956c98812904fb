"""Broken requests to ``glip serve`` and broken exported folders: kinds of ``fuzz_kinds.py``, which ``fuzz.py`` adds.

Requests are bytes on a connection to a server in this process, answered by the tiny model. ``fuzz_page.py`` has those
to the page of ``glip demo``.
"""

import base64
import functools
import http.client
import json
import os
import pickle
import random
import select
import socket
import tempfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_kinds import ODD, RAN, TEXTS, Read, encoded_images, mutate_bytes, mutate_tree, tiny
from fuzz_runs import Evil
from PIL import Image

import glip
from glip.errors import GlipError
from glip.experiment import to_dict
from glip.model.adapt import Adaptation
from glip.model.exported import describe
from glip.structures import Prompt

Rng = random.Random
PATIENCE = 300.0  # seconds for an answer; a request that is cut is given up by its client after a moment
_XML = (
    '<View><Image name="img" value="$a"/><RectangleLabels name="l" toName="img" value="$own"><Label value="cat"/>'
    '<Label value="dog" alias="D"/></RectangleLabels><TextArea name="ask" toName="img"/></View>'
)
_FAULTS = (500, 503, 504)


# ---- requests


@functools.cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="glip-fuzz-")


@functools.cache
def address(kind: str) -> str:
    """The socket of a server, "serve" or "demo", that runs until this process ends."""
    from glip.integrations.serve import create_app, http_server
    from glip.integrations.serve_options import ServeConfig

    detector, prompt = tiny(), Prompt.from_names(["cat", "dog"])
    offsets = detector.encode_text(prompt).hidden[0].detach()
    task = Adaptation("prompt", "tiny", detector.fingerprint, ("cat", "dog"), prompt, offsets)
    limits = ServeConfig(max_mb=0.5, max_pixels=40_000, max_images=3, max_names=50, timeout=PATIENCE)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path := f"{_place().name}/{kind}")
    listener.listen()
    detectors = {"": detector, "pets": detector.adapted(task)}
    if kind == "demo":
        from glip.integrations.demo import create_demo

        server = create_demo(detectors, limits)
    else:
        server = http_server(create_app(detectors, limits))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return path


def send(request: bytes, server: str = "serve", *, whole: bool = True) -> tuple[int, str, bytes]:
    """Status, type and body of the answer; 0 where a request that is not whole gets none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(address(server))
        try:
            connection.sendall(request)
        except OSError:  # it was refused while it was sent
            whole = False
        if not whole and not select.select([connection], [], [], 0.3)[0]:
            connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection, method=request.split(b" ")[0].decode("latin-1"))
        try:
            answer.begin()
            return answer.status, answer.getheader("content-type", ""), answer.read()
        except TimeoutError:
            raise AssertionError(f"no answer within {PATIENCE:g} seconds") from None
        except (OSError, http.client.RemoteDisconnected):
            assert not whole, "the connection ends without an answer"
            return 0, "", b""


def read_requests(rng: Rng, folder: Path) -> None:
    """A request of one of the protocols with broken values, JSON, images, forms, heads or bytes; then a good one."""
    path, tree = _asked(rng)
    others = (path, f"{path}/", "/metrics", "/docs", "/openapi.json", "/tasks/%ff/setup", "//", "/?a=%00")
    _, answer = exchange(rng, "serve", path, tree, others, "/detect")
    if rng.random() < 0.1:
        assert send(_good())[0] == 200, "a good request is not answered afterwards"
    check(*answer)


def exchange(
    rng: Rng, server: str, path: str, tree: Any, others: Sequence[str], form: str
) -> tuple[bytes, tuple[int, str, bytes]]:
    """A request that is broken in one of many ways, and the answer; ``form`` is the path of uploads."""
    kind, body = "application/json", json.dumps(tree).encode()
    method, headers, way = "POST", dict[str, str](), rng.randrange(10)
    if way < 4:
        body = json.dumps(mutate_tree(rng, tree)).encode()
    elif way == 4:
        body = mutate_bytes(rng, rng.choice((body, b"[" * 90_000, body.replace(b'"cat', b'"\\ud800cat'), b"NaN", b"")))
    elif way < 7:
        path, (kind, body) = form, _form(rng)
    elif way == 7:
        method = rng.choice(("GET", "PUT", "HEAD", "OPTIONS", "post", "DELETE", "POST", "POST"))
        path, own = rng.choice(others), rng.sample(sorted(_HEADERS.items()), 2)
        headers = {name: rng.choice(values) for name, values in own}
    head = {"Host": "a", "Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close", **headers}
    request = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in head.items())
    data = request.encode("latin-1") + b"\r\n" + body
    broken = mutate_bytes(rng, data) if way == 9 else data
    return broken, send(broken, server, whole=broken == data and way != 7)


def _asked(rng: Rng) -> tuple[str, dict[str, Any]]:
    """A path and a good request to it."""
    form, data = rng.choice(encoded_images())
    image = base64.b64encode(mutate_bytes(rng, data) if rng.random() < 0.3 else data).decode()
    image = rng.choice(("", f"data:image/{form};base64,")) + image
    names = rng.choice((["cat", "dog"], "cat. dog", rng.choice(TEXTS)))
    shared: dict[str, Any] = {"nms": 0.5, "max_detections": 3}
    labelled = {"id": 1, "data": {"a": image, "own": [{"value": "bird"}]}}
    context = {"result": [{"type": "textarea", "from_name": "ask", "value": {"text": ["a cat"]}}]}
    params = {"conf_threshold": 0.1, "iou_threshold": 0.5, "text_prompt": names}
    return rng.choice(
        (
            (
                "/detect",
                {"image": image, "names": names, "threshold": rng.choice((0.1, [0.1, 0.2], {"cat": 0})), **shared},
            ),
            ("/detect", {"images": [image, image], "caption": "a cat and a dog", **shared}),
            ("/detect", {"image": image, "task": "pets"}),
            ("/v1/predict", {"model": rng.choice(("tiny", "pets")), "image": image, "params": params}),
            ("/predict", {"tasks": [labelled, labelled], "label_config": _XML, "params": {"context": context}}),
            ("/tasks/pets/predict", {"tasks": [labelled], "label_config": _XML, "params": {}}),
            (rng.choice(("/setup", "/tasks/pets/setup")), {"schema": _XML, "project": "1.2"}),
            ("/webhook", {"action": "START_TRAINING"}),
        )
    )


_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Type": ("application/json; charset=utf-16", "multipart/form-data", "text/html", "", "\xff", "a" * 9000),
    "Content-Length": ("0", "-1", "1e3", "99999999999999999999", "5", "x"),
    "Content-Encoding": ("gzip", "br", "identity", "gzip, gzip"),
    "Transfer-Encoding": ("chunked", "gzip", "chunked, chunked"),
    "Authorization": ("Basic !", "Basic \xff", "Bearer", "Basic " + "A" * 5000),
    "Expect": ("100-continue", "200"),
    "Connection": ("upgrade", "keep-alive", "close, close"),
    "Upgrade": ("websocket", "h2c"),
    "Host": ("", "\xff", "a:b:c"),
    "Range": ("bytes=0-1",),
}


def _form(rng: Rng) -> tuple[str, bytes]:
    """A type and a form with broken fields, files, heads of parts or boundaries."""
    fields = [("names", "cat. dog"), ("threshold", "0.1"), ("nms", "0.5"), ("max_detections", "2")]
    odd = [
        (rng.choice(("names", "caption", "task", "image", "x\xff")), str(rng.choice(ODD)))
        for _ in range(rng.randrange(3))
    ]
    charset = rng.choice(
        ("", "", "", *(f"; charset={name}" for name in ("utf-7", "idna", "punycode", "hex", "unicode_escape", "x")))
    )
    parts = [
        (f'name="{name}"', value.encode("utf-8", "surrogatepass"))
        for name, value in [*fields[: rng.randrange(5)], *odd]
    ]
    image = rng.choice(encoded_images())[1]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
        name = rng.choice(("image", "image", "files", "images", "photo", ""))
        file = rng.choice(("a.png", "../../up", "", "a\xff\x01"))
        parts.append((f'name="{name}"; filename="{file}"', mutate_bytes(rng, image)))
    more = rng.choice(
        (
            "",
            "",
            "Content-Type: image/png\r\n",
            "Content-Transfer-Encoding: base64\r\n",
            "x" * 9000 + ": y\r\n",
            "y\r\n",
        )
    )
    body = b"".join(
        f"--b\r\nContent-Disposition: form-data; {about}\r\n{more}\r\n".encode("latin-1", "replace") + value + b"\r\n"
        for about, value in parts
    )
    body += rng.choice((b"--b--\r\n", b"--b--\r\n", b"--b--\r\n", b"--b", b""))
    boundary = rng.choice(
        ("; boundary=b",) * 6 + ("", "; boundary=", "; boundary=c", '; boundary="b', "; boundary=" + "b" * 999)
    )
    return f"multipart/form-data{boundary}{charset}", mutate_bytes(rng, body) if rng.random() < 0.3 else body


@functools.cache
def _good() -> bytes:
    image = base64.b64encode(encoded_images()[0][1]).decode()
    body = json.dumps({"image": image, "names": "cat. dog"}).encode()
    head = f"POST /detect HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


def check(status: int, kind: str, content: bytes) -> None:
    """An answer is finite JSON, or an error of one sentence that shows nothing of the server."""
    if not status or (not content and status < 500):  # of a request that was cut, or of HEAD
        raise GlipError(f"no answer, {status}")
    assert status not in _FAULTS, f"{status}: {content[:500]!r}"
    text = content.decode()
    if kind.startswith("application/json"):
        tree = json.loads(text, parse_constant=lambda name: 1 / 0)
        text = tree["error"] if status >= 400 and "error" in tree else text
    if status >= 400:
        assert not any(hint in text for hint in ("Traceback", 'File "', ".py", str(Path.cwd()))), text
        raise GlipError(text)


# ---- exported folders

_GRAPHS = {
    "image_encoder": """image_encoder (float[b,3,h,w] pixels) => (float[b,c,r,s] p3, float[b,c,t,u] p4,
        float[b,c,v,x] p5, float[b,c,y,z] p6, float[b,c,k,l] p7) {
        small = AveragePool<kernel_shape = [8, 8], strides = [8, 8]>(pixels)
        p3 = Conv(small, filters)
        p4 = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(p3)
        p5 = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(p4)
        p6 = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(p5)
        p7 = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(p6) }""",
    "text_encoder": """text_encoder (int64[b,t] input_ids, bool[b,t] attention_mask) => (float[b,t,c] hidden) {
        rows = Gather(words, input_ids)
        kept = Cast<to = 1>(attention_mask)
        last = Constant<value_ints = [2]>()
        wide = Unsqueeze(kept, last)
        hidden = Mul(rows, wide) }""",
    "head": """head (float[b,c,r,s] p3, float[b,c,t,u] p4, float[b,c,v,x] p5, float[b,c,y,z] p6, float[b,c,k,l] p7,
        float[b,n,m] hidden, bool[b,n] attention_mask) => (float[b,i,n] token_logits, float[b,i,4] box_deltas,
        float[b,i] centerness) {
        flat = Constant<value_ints = [0, 0, -1]>()
        a = Reshape(p3, flat)
        d = Reshape(p4, flat)
        e = Reshape(p5, flat)
        f = Reshape(p6, flat)
        g = Reshape(p7, flat)
        all = Concat<axis = 2>(a, d, e, f, g)
        rows = Transpose<perm = [0, 2, 1]>(all)
        shared = MatMul(rows, matrix)
        columns = Transpose<perm = [0, 2, 1]>(hidden)
        token_logits = MatMul(shared, columns)
        box_deltas = MatMul(rows, offsets)
        one = Constant<value_ints = [2]>()
        centerness = ReduceMean<keepdims = 0>(rows, one) }""",
}  # a model of a few products, with the inputs, outputs and sizes of the tiny model's own graphs
_SIZES = {"filters": (16, 3, 1, 1), "words": (3000, 32), "matrix": (16, 32), "offsets": (16, 4)}


@functools.cache
def exported_files() -> dict[str, bytes]:
    """The files of an exported folder."""
    import onnx

    config, files, random_ = tiny().config, dict[str, bytes](), np.random.default_rng(0)
    for name, text in _GRAPHS.items():
        graph = onnx.parser.parse_graph(text)
        used = {part for node in graph.node for part in node.input}
        for part, size in _SIZES.items():
            if part in used:
                values = random_.normal(size=size).astype(np.float32)
                graph.initializer.append(onnx.numpy_helper.from_array(values, part))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
        onnx.helper.set_model_props(model, {**describe(config), "fingerprint": "0" * 64})
        files[f"{name}.onnx"] = model.SerializeToString()
    files["config.json"] = json.dumps(to_dict(config)).encode()
    files["vocab.txt"] = (tiny().processor.tokenizer.folder / "vocab.txt").read_bytes()
    return files


def read_exported(rng: Rng, folder: Path) -> None:
    """A folder of ``glip export`` with files that are broken, swapped, edited, of others, links or programs."""
    files, place, way = dict(exported_files()), folder / "model", rng.randrange(9)
    chosen, other = rng.sample(sorted(files), 2)
    if way < 3:
        files[chosen] = mutate_bytes(rng, files[chosen])
    elif way < 6:
        graph = rng.choice(sorted(_GRAPHS)) + ".onnx"
        files[graph] = _edited(rng, files[graph], folder)
    elif way == 6:
        tree = mutate_tree(rng, json.loads(files["config.json"]), times=2)
        files["config.json"] = json.dumps(tree).encode()
    elif way == 7:
        files[chosen] = files[other] if rng.random() < 0.5 else files.pop(other)
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    if way == 8:
        (place / chosen).unlink()
        ends = (lambda: (place / chosen).mkdir(), lambda: (place / chosen).symlink_to("/dev/zero"))
        rng.choice((*ends, lambda: os.mkfifo(place / chosen), lambda: write_program(place, folder / RAN)))()
    found = glip.Detector.from_pretrained(place)(Image.new("RGB", (40, 70)), "a cat. a dog", threshold=0.0)
    assert (
        found.boxes.isfinite().all() and found.scores.isfinite().all() and len(found.to_coco(1, [1, 2])) == len(found)
    )
    assert not (folder / RAN).exists(), "code in a program has run"


def _edited(rng: Rng, data: bytes, folder: Path) -> bytes:
    """A graph with one part that is another: an operator, a name, an attribute, weights, metadata or their place."""
    import onnx

    model = onnx.load_from_string(data)
    node, text = rng.choice(model.graph.node), rng.choice(TEXTS).encode("utf-8", "replace").decode()
    values, way = [*model.graph.input, *model.graph.output], rng.randrange(9)
    if way == 0:
        node.op_type = rng.choice(("Add", "Loop", "If", "Identity", "Shape", "Reshape", "NonZero", "Custom", text))
    elif way == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice((text, node.output[0], "pixels"))
    elif way == 2 and node.attribute:
        rng.choice(node.attribute).ints[:] = rng.choices((0, -1, 1, 2, 10**6, 2**62), k=rng.randrange(4))
    elif way == 3:
        rng.choice(values).name = text
    elif way == 4:
        rng.choice(model.metadata_props).value = text
    elif way == 5:
        model.opset_import[0].version = rng.choice((0, 1, 11, 999, -1))
    elif way == 6:
        rng.choice(values).type.tensor_type.elem_type = rng.randrange(25)
    elif model.graph.initializer:
        _move(rng, rng.choice(model.graph.initializer), folder, text)
    return model.SerializeToString()


def _move(rng: Rng, tensor: Any, folder: Path, text: str) -> None:
    """Weights of another size, or in a file that is outside the folder, has no end, is too short or is not there."""
    if rng.random() < 0.5:
        tensor.dims[0] = rng.choice((0, -1, 2, 10**9, 2**62))
        return
    (folder / "secret").write_bytes(bytes(200_000))
    tensor.data_location = 1  # external
    places = ("../secret", str(folder / "secret"), "/dev/zero", "head.onnx", "", "no", text)
    for key, value in (("location", rng.choice(places)), ("offset", rng.choice(("0", "-1", str(2**63), "x")))):
        tensor.external_data.add(key=key, value=value)


def write_program(place: Path, ran: Path) -> None:
    """Programs of torch.export in whose example inputs code would run."""
    (place / "image_encoder.onnx").unlink(missing_ok=True)
    with zipfile.ZipFile(place / "image_encoder.pt2", "w") as archive:
        archive.writestr("image_encoder/data/sample_inputs/model.pt", pickle.dumps(Evil(ran)))


_NEEDS: dict[str, tuple[Read, str]] = {
    "requests": (read_requests, "fastapi"),
    "exported": (read_exported, "onnxruntime"),
}
DOORS = {name: read for name, (read, package) in _NEEDS.items() if find_spec(package)}
