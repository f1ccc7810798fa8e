"""A running gateway's admin API, as the command line speaks to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click
import httpx

_WITHIN_S = 30.0
_EVENTS_PAUSE_S = 60.0  # a stream's heartbeat comes more often

gateway_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--url",
    envvar="MIPGATE_URL",
    default="http://127.0.0.1:3000",
    show_default=True,
    help="A running gateway.",
)
over_api_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--url", help="Have this running gateway do it, and not this machine."
)
key_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--key", envvar="MIPGATE_KEY", help="Its key; better in the environment than here, where others see it."
)


class Remote:
    """Speaks to one gateway."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str, **query: str) -> Any:
        """The JSON at this path."""
        return self._ask("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the gateway answers to this body."""
        return self._ask("POST", path, json=body or {})

    def delete(self, path: str) -> Any:
        """What the gateway answers to a deletion."""
        return self._ask("DELETE", path)

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Names and documents of a stream of events, until it ends."""
        with self._explained(), self._stream(path) as response:
            if not response.is_success:
                response.read()
                raise click.ClickException(_reason(response))
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    def _stream(self, path: str) -> AbstractContextManager[httpx.Response]:
        return httpx.stream("GET", self.url + path, headers=self._headers, timeout=_EVENTS_PAUSE_S)

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        with self._explained():
            response = httpx.request(
                method, self.url + path, headers=self._headers, timeout=_WITHIN_S, **content
            )
        if not response.is_success:
            raise click.ClickException(_reason(response))
        return response.json()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Tells of a gateway that does not answer."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise click.ClickException(
                f"no gateway answers at {self.url} ({error}). Start one with `mipgate serve`, or give its "
                "address with --url or MIPGATE_URL."
            ) from error


def _reason(response: httpx.Response) -> str:
    """What the gateway says, and how to bring a key where it wants one."""
    try:
        reason = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered {response.status_code}: {response.text[:300]}"
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return f"{reason} Here: --key or MIPGATE_KEY."
    return reason
