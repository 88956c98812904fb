"""The door of ``glip serve``: token, limits, time-outs and figures, the same for every protocol."""

import asyncio
import base64
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping, Set
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from uvicorn.protocols.http.h11_impl import H11Protocol

from glip.integrations.serve_options import ServeConfig

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_OPEN = "/health"  # needs no token, since load balancers ask for it
_HEAD_SECONDS = 10.0  # for the head of a request
_LINGER_SECONDS = 5.0  # a refused client may go on sending, so that it reads why
_LONGEST = 400  # characters of an error


class Metrics:
    """Figures of one server, in Prometheus' form."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "glip_requests", "answers by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram("glip_request_seconds", "time of a POST, its body included", registry=self.registry)
        self.busy = Gauge("glip_requests_in_progress", "POST requests that are read or wait", registry=self.registry)
        sizes = (1, 2, 4, 8, 16, 32)
        self.batches = Histogram("glip_batch_images", "images of a pass", buckets=sizes, registry=self.registry)


class Refused(Exception):
    """A request that is not answered by the application: status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def refusal(status: int, why: str) -> JSONResponse:
    """An error as every endpoint gives it: ``{"error": one sentence}``."""
    headers = {401: {"WWW-Authenticate": 'Basic realm="glip"'}, 503: {"Retry-After": "1"}}.get(status)
    why = " ".join(why.split())
    shown = why if len(why) <= _LONGEST else f"{why[: _LONGEST // 2]} ... {why[-_LONGEST // 2 :]}"
    return JSONResponse({"error": shown}, status, headers)


class Guard:
    """An ASGI application around another; it reads each body whole, within the limits, before the other begins.

    A request whose client goes away, or that waits too long, is cancelled.

    Args:
        app: the application.
        config: the limits.
        metrics: where answers are counted.
        paths: of the application; others are counted together.
    """

    def __init__(self, app: Any, config: ServeConfig, metrics: Metrics, paths: Set[str]) -> None:
        self.app, self._config, self._metrics, self._paths = app, config, metrics, paths
        self._busy = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, began = 0, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self._check_token(scope)
            await (self._post if scope["method"] == "POST" else self.app)(scope, receive, noted)
        except Refused as refused:
            if not status:
                await _refuse(refused, scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status or "gone").inc()
            if scope["method"] == "POST":
                self._metrics.seconds.observe(time.perf_counter() - began)

    def _check_token(self, scope: Message) -> None:
        token = self._config.token
        if token is None or scope["path"] == _OPEN:
            return
        headers = dict(scope["headers"])
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic":  # as Label Studio sends it; any user name
            with suppress(ValueError):
                given = base64.b64decode(given, validate=True).partition(b":")[2]
        sent = (given, headers.get(b"token", b""))  # X-AnyLabeling has a header of its own
        if not any([hmac.compare_digest(one, token.encode()) for one in sent]):
            raise Refused(401, "no token, or a wrong one: send it as Authorization: Bearer TOKEN, or as Token: TOKEN")

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._busy >= self._config.queue:
            raise Refused(503, f"the server is busy with {self._busy} requests: try again later")
        self._busy += 1
        self._metrics.busy.set(self._busy)
        try:
            try:
                async with asyncio.timeout(self._config.timeout):
                    body = await self._read(scope, receive)
            except TimeoutError:
                raise Refused(408, f"the request was not sent within {self._config.timeout:g} seconds") from None
            if body is not None:
                await self._run(scope, body, receive, send)
        finally:
            self._busy -= 1
            self._metrics.busy.set(self._busy)

    async def _read(self, scope: Message, receive: Receive) -> bytes | None:
        """The body; None where the client goes away while sending it."""
        most, body = self._config.max_mb * 1e6, bytearray()
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        while True:
            if max(len(body), int(stated) if stated.isdigit() else 0) > most:
                raise Refused(413, f"the request has more than {self._config.max_mb:g} MB: send less")
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body"):
                return bytes(body)

    async def _run(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await asyncio.Future()

        answer = asyncio.ensure_future(self.app(scope, replay, send))
        gone = asyncio.ensure_future(receive())  # nothing follows a whole body but the client's going
        try:
            await asyncio.wait({answer, gone}, timeout=self._config.timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await answer
            elif not gone.done():
                raise Refused(504, f"no answer within {self._config.timeout:g} seconds: try again later")
        finally:
            for work in (answer, gone):
                work.cancel()
            await asyncio.wait({answer, gone})


async def _refuse(refused: Refused, scope: Message, receive: Receive, send: Send) -> None:
    """Answer, then read and drop for a while what the client still sends: else it may not see the answer."""
    answer = refusal(refused.status, str(refused))
    await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            more = scope["method"] == "POST" and refused.status in (401, 413, 503)
            while more:
                more = (await receive()).get("more_body", False)
    await send({"type": "http.response.body", "body": b""})


class Connection(H11Protocol):
    """A connection of uvicorn that is closed when the head of a request takes too long, the first or a later one."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._check(None)

    def _check(self, waiting: Any) -> None:
        """Close if no request has begun since the last check, where there was none in work."""
        cycle = self.cycle
        idle = cycle is None or cycle.response_complete
        if idle and waiting is not None and waiting == (id(cycle) if cycle else 0):
            self.transport.close()
        elif not self.transport.is_closing():
            now = (id(cycle) if cycle else 0) if idle else None
            self.loop.call_later(_HEAD_SECONDS, self._check, now)
