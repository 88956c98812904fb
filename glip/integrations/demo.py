"""``glip demo``: a page to try a model and its tasks in a browser (docs/integrations.md)."""

import asyncio
import html
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import gradio as gr
import gradio.routes
import torch
from fastapi import FastAPI
from PIL import Image

from glip.config import Share
from glip.data.records import as_map
from glip.detector import Detector
from glip.errors import GlipError, ImageError
from glip.files import file_name, temporary_folder
from glip.integrations import messages
from glip.integrations.batching import Batcher
from glip.integrations.guard import Guard, Message, Metrics, Receive, Send, refusal
from glip.integrations.serve import http_server
from glip.integrations.serve_options import ServeConfig
from glip.lettering import marked, palette
from glip.recipes.result_files import CLASSES, WRITERS, Item, to_line
from glip.schema import parse
from glip.structures import Detections
from glip.visualize import draw

_LOWEST = 0.05  # of the slider; detections are computed down to it
_VIEW = 1280  # longest side of the image that is shown, in pixels
_KEPT, _SWEPT = 3600, 60  # seconds until an upload and what was made of it is deleted, and between two looks
_KINDS = ("names", "a sentence")
_BUTTONS = ["download", "fullscreen"]
_EMPTY = [None] * 6  # of a column
_TABLE, _WIDTHS = ["phrase", "score", "x1 y1 x2 y2"], ["34%", "18%", "48%"]
_API = "/gradio_api"
_FILES, _UPLOAD = f"{_API}/file=", f"{_API}/upload"
_PATHS = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"} | {
    f"{_API}/{name}"
    for name in ("info", "upload", "upload_progress", "queue/join", "queue/data", "startup-events", "cancel", "reset")
}
_BELOW = ("/assets/", "/static/", f"{_API}/heartbeat/")


@dataclass(frozen=True)
class _Found:
    """What one detector found: ``view`` is the image as it is shown, ``name`` that of its file."""

    found: Detections
    view: Image.Image
    name: str


class Demo:
    """The page's events. ``detectors`` has the model itself as "", and its tasks by name."""

    def __init__(self, detectors: Mapping[str, Detector], config: ServeConfig, folder: Path, metrics: Metrics) -> None:
        self._detectors, self._config, self._folder = detectors, config, folder
        self._threshold = detectors[""].config.inference.threshold if config.threshold is None else config.threshold
        self._lowest = min(_LOWEST, self._threshold)
        self.batcher = Batcher(detectors, config, metrics.batches.observe)

    def page(self) -> gr.Blocks:
        """The page: image, words and slider, then a column for the model and for each task."""
        with gr.Blocks(title="glip demo", analytics_enabled=False) as page:
            gr.Markdown(f"# glip demo\n{html.escape(repr(self._detectors['']))}")
            found = gr.State()
            with gr.Row():
                image = gr.Image(label="Image", sources=["upload", "webcam", "clipboard"], height=300)
                with gr.Column():
                    words = gr.Textbox(label="What to find", placeholder="a red bus. a cyclist", lines=2)
                    kind = gr.Radio(_KINDS, value=_KINDS[0], label="These words are")
                    button = gr.Button("Detect", variant="primary")
                    slider = gr.Slider(self._lowest, 1, self._threshold, step=0.01, label="Lowest score")
            with gr.Row():
                shown = [part for task in self._detectors for part in _column(task, len(self._detectors) > 1)]
            asked, places = [image, words, kind, slider], shown[1 :: len(shown) // len(self._detectors)]
            more = {"concurrency_limit": 2 * self._config.batch_size, "show_progress_on": places}
            event = gr.on(
                [button.click, words.submit], self.detect, asked, [found, *shown],
                api_name="detect", preprocess=False, **more,
            )  # fmt: skip
            event.failure(lambda: [None, *self._nothing()], None, [found, *shown], api_visibility="private")
            slider.change(self.filter, [found, slider], shown, api_name="filter", show_progress="hidden", **more)
        page.queue(max_size=self._config.queue, api_open=False)
        page.state_session_capacity = self._config.queue
        return page

    def detect(self, image: Any, words: Any, kind: Any, threshold: Any) -> list[Any]:
        """Find the words, and the classes of each task, down to the lowest threshold; the values come unchecked.

        Raises:
            gr.Error: one sentence about what cannot be used.
        """
        try:
            found = self._find(image, words.strip() if isinstance(words, str) else words, kind)
            return [found, *self._shown(found, parse(Share, threshold, at="threshold"))]
        except TimeoutError:
            problem = f"no answer within {self._config.timeout:g} seconds: try again later, or with fewer names"
        except GlipError as error:
            problem = str(error)
        raise gr.Error(html.escape(problem, quote=False), duration=20, print_exception=False)  # it is read as HTML

    def filter(self, found: Sequence[_Found | None] | None, threshold: float) -> list[Any]:
        """Show what scores at least ``threshold``; nothing is computed again."""
        return self._shown(found, threshold) if found else self._nothing()

    def _nothing(self) -> list[Any]:
        """The columns as they are at first."""
        return [part for task in self._detectors for part in (gr.Column(visible=not task), *_EMPTY)]

    def _find(self, upload: Any, words: Any, kind: Any) -> list[_Found | None]:
        if not upload:
            raise ImageError("no image: upload one, or take one with the webcam")
        names, caption = (None, words) if kind == _KINDS[1] else (words, None)
        prompt = messages.read_prompt(names, caption, self._config) if words or len(self._detectors) == 1 else None
        try:
            data = Path(str(upload["path"])).read_bytes()
        except OSError:
            raise ImageError(f"the image was deleted after {_KEPT // 60} minutes: upload it again") from None
        image = messages.open_image(data, self._config, str(upload.get("orig_name") or ""))
        tasks = [task for task in self._detectors if task or prompt]
        asked = [messages.Question(b"", task, None if task else prompt, {"threshold": self._lowest}) for task in tasks]
        jobs = {one.task: self.batcher.submit(one, image) for one in asked}
        try:
            found = {task: job.result(self._config.timeout) for task, job in jobs.items()}
        finally:
            for job in jobs.values():
                job.cancel()  # what has not begun, after an error
        view, name = image.copy(), Path(upload.get("orig_name") or "image").name
        view.thumbnail((_VIEW, _VIEW))
        return [_Found(found[task], view, name) if task in found else None for task in self._detectors]

    def _shown(self, found: Sequence[_Found | None], threshold: float) -> list[Any]:
        return [part for one in found for part in self._parts(one, threshold)]

    def _parts(self, one: _Found | None, threshold: float) -> Iterator[Any]:
        """The values of a column."""
        yield gr.Column(visible=one is not None)
        if one is None:
            yield from _EMPTY
            return
        found = one.found.above(threshold)
        factors = torch.tensor(one.view.size) / torch.tensor(found.size[::-1])
        as_names = replace(found.prompt, is_list=True)  # a sentence is shown below the image, not in it
        scaled = replace(found, boxes=found.boxes.cpu() * factors.repeat(2), size=one.view.size[::-1], prompt=as_names)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        draw(one.view, scaled).save(drawn := folder / "found.jpg", quality=92, subsampling=0)  # thin lines stay sharp
        yield str(drawn)
        yield _coloured(found)
        yield [[one.phrase, f"{one.score:.2f}", " ".join(f"{side:.0f}" for side in one.box)] for one in found]
        yield from _write_downloads(replace(one, found=found), folder)


def _column(task: str, is_titled: bool) -> list[Any]:
    """What is shown of a detector."""
    with gr.Column(min_width=300, visible=not task) as column:
        if is_titled:
            gr.Markdown(f"### {html.escape(task or 'your words')}")
        image = gr.Image(label="Found", alt_text="the image with boxes", interactive=False, buttons=_BUTTONS)
        text = gr.HighlightedText(label="Words", show_inline_category=False)
        table = gr.Dataframe(
            headers=_TABLE, column_count=3, column_widths=_WIDTHS, interactive=False, label="Detections", wrap=True
        )
        with gr.Row():
            files = [gr.DownloadButton(name, size="sm", min_width=80) for name in ("COCO", "YOLO", "JSON")]
    return [column, image, text, table, *files]


def _coloured(found: Detections) -> Any:
    """The words, each phrase in the colour of its boxes, in pale grey if it has none."""
    colours = palette(found.prompt.texts)
    runs = marked(found.prompt, {label: colours[label] for label in found.labels.tolist()})
    keys = ["#" + bytes(run.colour).hex() if run.colour else None for run in runs]
    words = [(run.text, key) for run, key in zip(runs, keys, strict=True)]
    return gr.HighlightedText(words, color_map={key: key for key in keys if key})


def _write_downloads(one: _Found, folder: Path) -> list[str]:
    """The files of the download buttons."""
    found, item = one.found, Item(Path(one.name), one.view)
    coco, yolo, plain = (folder / name for name in ("coco.json", "yolo.zip", "detections.json"))
    with WRITERS["coco"][1](coco, [item.source], found.prompt) as add:
        add(item, found)
    with ZipFile(yolo, "w") as file:
        file.writestr(f"{file_name(Path(one.name).stem)}.txt", found.to_yolo())
        file.writestr(CLASSES, "".join(f"{' '.join(name.split())}\n" for name in found.prompt.texts))
    plain.write_text(f"{to_line(item, found)}\n", encoding="utf-8")
    return [str(coco), str(yolo), str(plain)]


class _Door:
    """Lets through what the page needs of Gradio, and no file but those of its own folder."""

    def __init__(self, app: Any, folder: Path, page: gr.Blocks) -> None:
        self._app, self._folder = app, folder
        self._inputs = {number: event.inputs for number, event in page.fns.items()}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        path, waiting = scope.get("path", "/"), list[Message]()
        is_known = path in _PATHS or path.startswith(_BELOW) or scope["type"] != "http"
        refused: tuple[int, str] | None = (404, "no such page")
        if is_known or (path.startswith(_FILES) and self._is_own(path.removeprefix(_FILES))):
            is_question = scope.get("method") == "POST" and path != _UPLOAD
            waiting += [await receive()] if is_question else []  # the whole body, from the Guard
            refused = self._problem(scope, waiting[0].get("body", b"")) if is_question else _long_head(scope)

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        app: Any = refusal(*refused) if refused else self._app
        return await app(scope, replay, send)

    def _problem(self, scope: Message, body: bytes) -> tuple[int, str] | None:
        """Status and sentence for a question that Gradio cannot read, which would answer with an exception."""
        tree, paths = _read_body(body)
        if tree is None or (scope["path"] == f"{_API}/queue/join" and not self._is_event(tree)):
            return 400, "this is not a request of the page: load it again"
        is_own = all(map(self._is_own, paths))
        return None if is_own else (403, "only uploaded images are read; no other path or address is opened")

    def _is_event(self, tree: Any) -> bool:
        """Whether it names an event of the page, with values of the right number and kinds."""
        data, number, session = (as_map(tree).get(name) for name in ("data", "fn_index", "session_hash"))
        asked = self._inputs.get(number) if type(number) is int else None
        if asked is None or not isinstance(data, list) or len(data) != len(asked):
            return False
        numbers = [value for part, value in zip(asked, data, strict=True) if isinstance(part, gr.Slider)]
        is_named = isinstance(session, str) and 0 < len(session) < 100
        return is_named and all(type(value) in (int, float) for value in numbers)

    def _is_own(self, path: Any) -> bool:
        is_path = isinstance(path, str) and "\0" not in path
        return is_path and Path(os.path.realpath(path)).is_relative_to(self._folder)


def _long_head(scope: Message) -> tuple[int, str] | None:
    """Status and sentence for an upload whose boundary is too long for the parser of forms."""
    longest = max((len(value) for name, value in scope.get("headers", ()) if name == b"content-type"), default=0)
    return (400, "the content type is too long") if longest > 250 else None


def _read_body(body: bytes) -> tuple[Any, list[Any]]:
    """The JSON of a request, None if it is none, and everything that it gives as the path of a file."""
    paths: list[Any] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        paths.extend(value for key, value in pairs if key == "path")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN is not JSON

    try:
        return json.loads(body or b"{}", object_pairs_hook=note, parse_constant=refuse), paths
    except (ValueError, RecursionError):
        return None, paths


async def _sweep(folder: Path) -> None:
    """Delete what is old. Gradio's own sweep ends for good when a file is uploaded meanwhile."""
    while True:
        await asyncio.sleep(_SWEPT)
        for path in folder.glob("*/*"):  # an upload, or a file for a download button
            with suppress(OSError):
                _remove_if_old(path)


def _remove_if_old(path: Path) -> None:
    if time.time() - path.stat().st_mtime > _KEPT:
        path.unlink()


def create_demo(detectors: Mapping[str, Detector], config: ServeConfig) -> Any:
    """A server of the page, behind the same door as that of ``glip serve``."""
    own, metrics = temporary_folder("glip-demo"), Metrics()
    folder = Path(own.name).resolve()
    os.environ["GRADIO_TEMP_DIR"] = gradio.routes.DEFAULT_TEMP_DIR = str(folder)  # not one that users share
    demo = Demo(detectors, config, folder, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with own:
            sweep = asyncio.create_task(_sweep(folder))
            yield
            sweep.cancel()
            demo.batcher.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    page = demo.page()
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        max_file_size=int(config.max_mb * 1e6),
    )
    mounted: Any = app.routes[-1]
    return http_server(Guard(_Door(app, folder, page), config, metrics, _PATHS), mounted.app.stop_event.set)
