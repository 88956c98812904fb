"""The door of ``glip serve``: token, limits, time-outs and figures, the same for every protocol."""

import asyncio
import base64
import hmac
import re
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
_BODIES = (b"application/json", b"multipart/form-data")
_CHARSET, _UTF8, _PLAIN = re.compile(rb"charset\s*=\s*[\"']?([^\"';\s]*)"), {b"utf-8", b"utf8"}, b"identity"
_HEAD_SECONDS = 10.0  # for the head of a request
_LINGER_SECONDS = 5.0  # a refused client may go on sending, so that it reads why


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


def refusal(status: int, why: str) -> JSONResponse:
    """An error as every endpoint gives it: ``{"error": one sentence}``."""
    headers = {401: {"WWW-Authenticate": 'Basic realm="glip"'}, 503: {"Retry-After": "1"}}.get(status)
    return JSONResponse({"error": " ".join(why.split())}, status, headers)


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
        self._free = asyncio.Semaphore(config.queue)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            refused = self._refusal(scope) or await (self._post if scope["method"] == "POST" else self.app)(
                scope, receive, noted
            )
            if refused and not status:
                await _turn_away(refused, scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status or "gone").inc()

    def _refusal(self, scope: Message) -> JSONResponse | None:
        """Why a request is refused by its head: a wrong token, too many others, a body of another type."""
        token, headers = self._config.token, dict(scope["headers"])
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic":  # as Label Studio sends it; any user name
            with suppress(ValueError):
                given = base64.b64decode(given, validate=True).partition(b":")[2]
        sent = (given, headers.get(b"token", b""))  # X-AnyLabeling has a header of its own
        known = token is None or any([hmac.compare_digest(one, token.encode()) for one in sent])
        if not known and scope["path"] != _OPEN:
            return refusal(401, "no token, or a wrong one: send Authorization: Bearer TOKEN, or Token: TOKEN")
        if scope["method"] != "POST":
            return None
        if self._free.locked():
            return refusal(503, f"the server is busy with {self._config.queue} requests: try again later")
        kind = headers.get(b"content-type", b"").lower()
        if kind.partition(b";")[0].strip() not in _BODIES:
            return refusal(415, "send Content-Type: application/json, or to /detect multipart/form-data")
        if headers.get(b"content-encoding", _PLAIN).lower() != _PLAIN or not set(_CHARSET.findall(kind)) <= _UTF8:
            return refusal(415, "send the body as it is, in UTF-8: no Content-Encoding, no other charset")
        return None

    async def _post(self, scope: Message, receive: Receive, send: Send) -> JSONResponse | None:
        async with self._free:
            with self._metrics.busy.track_inprogress(), self._metrics.seconds.time():
                try:
                    body = await asyncio.wait_for(self._received(scope, receive), self._config.timeout)
                except TimeoutError:
                    return refusal(408, f"the request was not sent within {self._config.timeout:g} seconds")
                return await self._run(scope, body, receive, send) if isinstance(body, bytes) else body

    async def _received(self, scope: Message, receive: Receive) -> bytes | JSONResponse | None:
        """The body, or why it is refused; None where the client goes away while sending it."""
        most, body = self._config.max_mb * 1e6, bytearray()
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        while max(len(body), int(stated) if stated.isdigit() else 0) <= most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body") and len(body) <= most:
                return bytes(body)
        return refusal(413, f"the request has more than {self._config.max_mb:g} MB: send less")

    async def _run(self, scope: Message, body: bytes, receive: Receive, send: Send) -> JSONResponse | None:
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
                return refusal(504, f"no answer within {self._config.timeout:g} seconds: try again later")
        finally:
            for work in (answer, gone):
                work.cancel()
            await asyncio.wait({answer, gone})
        return None


async def _turn_away(answer: JSONResponse, scope: Message, receive: Receive, send: Send) -> None:
    """Answer, then read and drop for a while what the client still sends: else it may not see the answer."""
    await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            more = scope["method"] == "POST" and answer.status_code in (401, 413, 415, 503)
            while more:
                more = (await receive()).get("more_body", False)
    await send({"type": "http.response.body", "body": b""})


class Connection(H11Protocol):
    """A connection of uvicorn that is closed when the head of a request takes too long, the first or a later one."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._check("new")

    def _check(self, before: object) -> None:
        """Close if the connection was idle at the last check too, with no request since then."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is before:
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(_HEAD_SECONDS, self._check, self.cycle if idle else "busy")
