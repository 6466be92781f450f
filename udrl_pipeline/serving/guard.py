"""What stands before every route: the key, the size and the pace of a body, headers for browsers, and the meters."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from udrl_pipeline.serving.errors import Refused, internal
from udrl_pipeline.serving.meters import Meters

logger = logging.getLogger(__name__)

#: Nothing is told here that a key protects. The pages ask for it themselves.
OPEN = ("/", "/health", "/ready", "/docs", "/openapi.json", "/static-offline-docs")
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}


def answer(refused: Refused) -> JSONResponse:
    return JSONResponse(refused.body(), refused.status, refused.headers)


class Guard:
    """ASGI middleware.

    Args:
        key: What clients must send as `Authorization: Bearer KEY`; empty: nothing.
        most_bytes, within_s: Of a request's body.
        is_ending: Whether the server is about to end: connections are then closed with their answer, so that none is cut off later.
    """

    def __init__(self, app: ASGIApp, meters: Meters, key: str, most_bytes: int, within_s: float, is_ending: Callable[[], bool]) -> None:
        self._app, self._meters, self._key, self._is_ending = app, meters, key, is_ending
        self._most_bytes, self._within_s = most_bytes, within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def telling(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self._is_ending():
                    headers["Connection"] = "close"
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._admit(scope["path"], headers)
            await self._app(scope, self._bounded(receive), telling)
        except Refused as refused:
            if status:  # the answer has begun: nothing can be said any more
                raise
            await answer(refused)(scope, receive, telling)
        except Exception:
            logger.exception("a request failed")
            if status:
                raise
            await answer(internal())(scope, receive, telling)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._meters.requests.labels(route, str(status)).inc()
            self._meters.seconds.labels(route).observe(time.monotonic() - began)

    def _admit(self, path: str, headers: Headers) -> None:
        is_open = any(path == start or (start != "/" and path.startswith(f"{start}/")) for start in OPEN)
        sent = headers.get("authorization", "").removeprefix("Bearer ")
        if self._key and not is_open and not hmac.compare_digest(sent.encode(), self._key.encode()):
            raise Refused("unauthorized", "the key is missing or wrong", where="header Authorization", remedy="send `Bearer KEY`")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """The body's messages, of which there are not too many, and which do not come too slowly."""
        until, got, complete = time.monotonic() + self._within_s, 0, False

        async def bounded() -> Message:
            nonlocal got, complete
            if complete:
                return await receive()  # waits until the client leaves
            try:
                message = await asyncio.wait_for(receive(), max(0.001, until - time.monotonic()))
            except TimeoutError:
                what = f"the body did not come within {self._within_s:g} s"
                raise Refused("too_slow", what, where="body", remedy="send it at once") from None
            got += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if got > self._most_bytes:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> Refused:
        return Refused("too_large", f"the body is larger than {self._most_bytes} bytes", where="body", remedy="send less")
