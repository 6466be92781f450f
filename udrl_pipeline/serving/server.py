"""Runs the application, and ends it without losing a request."""

import asyncio
import logging
import os
import signal
import socket
import time
from types import FrameType

import uvicorn

from udrl_pipeline.errors import SettingsError
from udrl_pipeline.serving.app import Serve

logger = logging.getLogger(__name__)

#: How long an idle connection is kept (s): longer than clients keep it, and than they are told to stay away, so that it is never closed
#: while a request is on its way.
KEEP_ALIVE_S = 120
#: Seconds for requests of connections that were taken just before nobody listens any more.
LAST_REQUESTS_S = 0.3
#: Seconds for the last answers to reach their clients.
LAST_WORDS_S = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket that is taken before a model is loaded.

    Raises:
        SettingsError: The port is taken, or the host is none of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror  # below 0: a name that is not known
        remedy = "choose another --port or --host"
        raise SettingsError(f"{host}:{port} cannot be served ({why})", where="udrl serve", remedy=remedy) from error


class Server(uvicorn.Server):
    """Told to end, it goes on listening: what is there is answered, what is new is refused with 503 and Retry-After, and only then
    are the connections closed. Told twice, it ends at once."""

    def __init__(self, serve: Serve) -> None:
        super().__init__(
            uvicorn.Config(
                serve.app,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_WORDS_S,
            )
        )
        self._served, self._until = serve, None  # type: Serve, float | None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._until is None:
            self._until = time.monotonic() + self._served.settings.serve.drain_s
            self._served.drain()
            logger.info("ending: what is there is answered first (%s ends it at once)", signal.Signals(sig).name)
        else:
            self._until = 0.0

    async def on_tick(self, counter: int) -> bool:
        if self._until is not None and (self._served.idle or time.monotonic() > self._until):
            self._served.abort()
            for server in self.servers:
                server.close()
            await asyncio.sleep(LAST_REQUESTS_S)  # what was on its way is told, too
            return True
        return await super().on_tick(counter)


def run(serve: Serve, bound: socket.socket) -> None:
    """Serve until told to end."""
    Server(serve).run(sockets=[bound])
