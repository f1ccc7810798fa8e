"""A uvicorn in a thread of its own, for tests of what speaks to it over real connections."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def serving(app: Any, **settings: Any) -> Iterator[int]:
    """The port on which it serves an app."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", **settings)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)
