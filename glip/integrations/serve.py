"""``glip serve``: one model behind plain JSON, Label Studio's and X-AnyLabeling's protocols (docs/integrations.md)."""

import asyncio
import html
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from glip import __version__
from glip.data.records import as_list, as_map
from glip.detector import Detector
from glip.errors import GlipError
from glip.integrations import label_studio_backend as label_studio
from glip.integrations import messages
from glip.integrations.batching import Batcher
from glip.integrations.guard import Connection, Guard, Metrics, refusal
from glip.integrations.serve_options import ServeConfig
from glip.schema import parse_json
from glip.structures import Detections

_log = logging.getLogger(__name__)
_PAGE = """<!doctype html><meta charset=utf-8><title>glip serve</title>
<style>body {{ font: 1em sans-serif; max-width: 50em; margin: 2em auto }}</style>
<h1>glip serve</h1><p>{model}; schema: <a href=openapi.json>openapi.json</a></p>{paths}"""


class Service:
    """The requests, each a method; ``detectors`` has the model itself as "", and its tasks by name."""

    def __init__(self, detectors: Mapping[str, Detector], config: ServeConfig) -> None:
        self._detectors, self._config, self.metrics = detectors, config, Metrics()
        self.images = label_studio.ImageSource(config, os.environ.get("LABEL_STUDIO_API_KEY", ""))
        self._decoders = ThreadPoolExecutor(config.batch_size, "glip-decoder")
        self.batcher = Batcher(detectors, config, self.metrics.batches.observe)
        self._decoded, self._fetched = (asyncio.Semaphore(2 * config.batch_size) for _ in range(2))  # bound the memory

    async def _find(self, question: messages.Question) -> Detections:
        async with self._decoded:
            opened = self._decoders.submit(messages.open_image, question.image, self._config, question.name)
            image = await asyncio.wrap_future(opened)
            return await asyncio.wrap_future(self.batcher.submit(question, image))

    def _names(self, task: str) -> tuple[str, ...]:
        """The classes of a task; of the model itself none."""
        adaptation = self._detectors[task].adaptation
        return adaptation.names if adaptation else ()

    async def detect(self, request: Request) -> Response:
        """Detect what names, a caption or a task say: in JSON, or in a form with the images as files."""
        if request.headers["content-type"].lower().startswith("multipart/form-data"):
            asked, files = await _form_of(request, self._config.max_images)
        else:
            asked, files = await _json_of(request, messages.DetectRequest), []
        questions = await asyncio.to_thread(messages.read_questions, asked, files, self._detectors, self._config)
        found = await _each(map(self._find, questions))
        for number, one in enumerate(found, start=1):
            if isinstance(one, GlipError):
                return refusal(400, f"image {number}: {one}" if len(found) > 1 else str(one))
        model = messages.version_of(self._detectors, questions[0].task)
        return JSONResponse({"model": model, "results": list(map(messages.to_record, found))})

    async def models(self) -> Response:
        """X-AnyLabeling: the model and the tasks."""
        return JSONResponse(messages.list_models(self._detectors))

    async def shapes(self, request: Request) -> Response:
        """X-AnyLabeling: rectangles for an image."""
        body = await _json_of(request)
        question = await asyncio.to_thread(messages.read_shape_question, body, self._detectors, self._config)
        names = question.prompt.texts if question.prompt else self._names(question.task)
        return JSONResponse(messages.to_shapes(await self._find(question), names, body))

    async def health(self, task: str = "") -> Response:
        """Whether the server is up, also for Label Studio."""
        version = messages.version_of(self._detectors, task)
        return JSONResponse({"status": "UP", "model_class": "GLIP", "model_version": version})

    async def setup(self, request: Request, task: str = "") -> Response:
        """Label Studio: a project is connected."""
        label_studio.read_interface((await _json_of(request)).get("schema"))
        return JSONResponse({"model_version": messages.version_of(self._detectors, task)})

    async def webhook(self, request: Request, task: str = "") -> Response:
        """Label Studio: an event; nothing is done."""
        await _json_of(request)
        return JSONResponse({}, 201)

    async def predict(self, request: Request, task: str = "") -> Response:
        """Label Studio: predictions for tasks. Of several tasks, those that cannot be read get none."""
        body, version = await _json_of(request), messages.version_of(self._detectors, task)
        interface, context = label_studio.read_interface(body.get("label_config")), as_map(body.get("params"))
        tasks = [as_map(one) for one in as_list(body.get("tasks"))]
        names = self._names(task)

        async def find(one: Mapping[str, Any]) -> dict[str, Any]:
            labels = label_studio.task_labels(interface, one)
            prompt = label_studio.read_task_prompt(interface, labels, context.get("context"), names, self._config)
            async with self._fetched:
                image = await self.images.read(as_map(one.get("data")).get(interface.image))
                found = await self._find(messages.Question(image, task, prompt, messages.detect_options(self._config)))
            return label_studio.to_prediction(found, interface, labels, prompt.texts if prompt else names, version)

        found = await _each(map(find, tasks))
        failed = [isinstance(one, GlipError) for one in found]
        errors = [f"task {one.get('id')}: {why}" for one, why, no in zip(tasks, found, failed, strict=True) if no]
        if all(failed):
            return refusal(400, errors[0] if errors else "tasks: none are sent")
        for error in errors:
            _log.warning("no prediction for %s", error)
        return JSONResponse(
            {"results": [[] if no else one for one, no in zip(found, failed, strict=True)], "errors": errors}
        )

    async def figures(self) -> Response:
        """Figures in Prometheus' form."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def create_app(detectors: Mapping[str, Detector], config: ServeConfig) -> Guard:
    """The application for an ASGI server; ``detectors`` has the model itself as "", and its tasks by name."""
    service = Service(detectors, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.close)  # every request is answered before
        await service.images.close()

    app = FastAPI(title="glip serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.exception_handler(GlipError)(lambda _, error: refusal(400, str(error)))
    app.exception_handler(HTTPException)(lambda _, error: refusal(error.status_code, error.detail))
    app.exception_handler(404)(lambda *_: refusal(404, "nothing is at this path: GET /docs lists what is"))
    app.exception_handler(Exception)(lambda *_: refusal(500, "an error in the server: its log has it"))
    described: dict[str, Any] = messages.DetectRequest.__pydantic_fields__  # type: ignore[attr-defined]
    about = {name: {"description": one.description} for name, one in described.items()}
    schema = {"schema": {"type": "object", "properties": about}}
    body = {"requestBody": {"content": {"application/json": schema, "multipart/form-data": schema}}}
    app.post("/detect", openapi_extra=body)(service.detect)
    app.get("/v1/models")(service.models)
    app.post("/v1/predict")(service.shapes)
    app.get("/metrics")(service.figures)
    for prefix in ("", "/tasks/{task}"):
        app.get(f"{prefix}/health")(service.health)
        for answer in (service.setup, service.predict, service.webhook):
            app.post(f"{prefix}/{answer.__name__}")(answer)
    paths = app.openapi()["paths"]
    page = HTMLResponse(_PAGE.format(model=html.escape(repr(detectors[""])), paths="".join(_page_parts(paths))))
    app.get("/docs", include_in_schema=False)(lambda: page)
    return Guard(app, config, service.metrics, {"/docs", *paths})


async def _each(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """Each result, or the GlipError in its place."""

    async def caught(one: Awaitable[Any]) -> Any:
        try:
            return await one
        except GlipError as error:
            return error

    return await asyncio.gather(*map(caught, work))


async def _form_of(request: Request, max_files: int) -> tuple[messages.DetectRequest, list[tuple[str, bytes]]]:
    """The request in the text fields of a form, and its files."""
    fields: dict[str, list[str]] = {}
    async with request.form(max_files=max_files) as form:
        for name, value in form.multi_items():
            if isinstance(value, str) or name not in ("image", "images"):
                fields.setdefault(name, []).append(str(value))
        sent = [value for _, value in form.multi_items() if not isinstance(value, str)]
        files = [(value.filename or "", await value.read()) for value in sent]
    return messages.read_form(fields), files


async def _json_of(request: Request, kind: Any = dict[str, Any]) -> Any:
    """The JSON of a request; a large one is not parsed on the thread that serves the others."""
    return await asyncio.to_thread(parse_json, kind, await request.body(), at="request")


def _page_parts(paths: Mapping[str, Any]) -> Iterator[str]:
    """The requests of OpenAPI's schema as parts of a page, which loads nothing from elsewhere."""
    for path, verbs in paths.items():
        for verb, about in verbs.items():
            yield f"<h2>{verb.upper()} {html.escape(path)}</h2><p>{html.escape(about['description'])}</p>"
            content = about.get("requestBody", {}).get("content", {}).get("application/json", {"schema": {}})
            for name, one in content["schema"].get("properties", {}).items():
                yield f"<p><b>{name}</b>: {html.escape(one['description'])}</p>"


class _Server(uvicorn.Server):
    """Runs until SIGINT or SIGTERM, then finishes what has begun."""

    on_stop: Callable[[], object] = staticmethod(lambda: None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams that have no end, then wait for the others."""
        self.on_stop()
        await super().shutdown(sockets)


def http_server(app: Guard, on_stop: Callable[[], object] | None = None) -> uvicorn.Server:
    """A server whose ``run(sockets=[...])`` answers until SIGINT or SIGTERM, then finishes what has begun."""
    settings: dict[str, Any] = {"http": Connection, "ws": "none", "log_level": "warning", "access_log": False}
    server = _Server(uvicorn.Config(app, server_header=False, proxy_headers=False, **settings))
    server.on_stop = on_stop or server.on_stop
    return server
