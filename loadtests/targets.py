"""What a load test aims at: a tier that routes, or a pinned variant. And what of it a gateway offers."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loadtests.authorization import KEY, authorization

Kind = Literal["tier", "variant", "mix"]

# What callers of a service with the default tiers plausibly ask for; other tiers get an equal part.
TIER_MIX = {"balanced": 60, "fast": 30, "accurate": 10}
OTHER_TIER = 10
# The target of all tiers at once.
MIX = "mix"
# Of an arrival that names none.
USUAL_TIER = "balanced"

# Pinned variants are measured, not held to a tier; the same for a pass over the test split.
UNHURRIED_MS = 60_000
_TIMEOUT_S = 10.0
_UNAUTHORIZED = 401


class GatewayError(Exception):
    """The gateway does not offer what a load test needs; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tier or a variant of one model.

    Attributes:
        model: The protocol model.
        kind: `tier` lets the gateway route; `variant` pins one; `mix` stands for all tiers at once.
        name: Of the tier; or of the variant: a recipe, or exactly `recipe@build`; or of the mix.
        unfit: Why a variant must not answer this tier, by variant.
    """

    model: str
    kind: Kind
    name: str
    unfit: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        """`tier:fast`, `variant:int8-static`, `mix`: its name in Locust and in reports."""
        return self.name if self.kind == "mix" else f"{self.kind}:{self.name}"

    @property
    def path(self) -> str:
        """Path of its infer requests."""
        model = urllib.parse.quote(self.model, safe="")
        version = f"/versions/{urllib.parse.quote(self.name, safe='@')}" if self.kind == "variant" else ""
        return f"/v2/models/{model}{version}/infer"

    def parameters(self, *, unhurried: bool = False) -> dict[str, str | int]:
        """The parameters of its requests.

        Args:
            unhurried: Give a tier's requests a minute instead of the tier's deadline.
        """
        tier: dict[str, str | int] = {"tier": self.name} if self.kind == "tier" else {}
        return tier | ({"max_latency_ms": UNHURRIED_MS} if unhurried or self.kind == "variant" else {})


@dataclass(frozen=True, slots=True)
class Offer:
    """What a gateway offers of one model.

    Attributes:
        model: The protocol model.
        variants: Recipes that answer when pinned.
        tiers: Tiers that a request may ask for.
        inputs: Protocol metadata of the inputs: `name`, `datatype`, `shape` (-1 where symbolic).
    """

    model: str
    variants: tuple[str, ...]
    tiers: tuple[str, ...]
    inputs: tuple[Mapping[str, Any], ...]

    def targets(self) -> list[Target]:
        """Every tier, then every variant."""
        tiers = [Target(self.model, "tier", name) for name in self.tiers]
        return tiers + [Target(self.model, "variant", name) for name in self.variants]


def offer(url: str, model: str | None) -> Offer:
    """Asks a gateway what it offers.

    Args:
        url: Base address, such as `http://localhost:3000`.
        model: A model's name; None takes the only one that the gateway serves.

    Raises:
        GatewayError: No gateway answers there, or it does not serve the model.
    """
    name = model or _only_model(url)
    metadata = _ask(url, f"/v2/models/{urllib.parse.quote(name, safe='')}")
    return Offer(name, tuple(metadata["versions"]), _tiers(url, name), tuple(metadata["inputs"]))


def _only_model(url: str) -> str:
    index = _ask(url, "/v2/repository/index", b'{"ready": true}')
    names = sorted({entry["name"] for entry in index})
    if len(names) != 1:
        known = ", ".join(names) or "none"
        raise GatewayError(
            f"the gateway at {url} serves {len(names)} models ({known}). "
            "Name one with --model or MIPGATE_MODEL."
        )
    return str(names[0])


def _tiers(url: str, model: str) -> tuple[str, ...]:
    """The gateway's OpenAPI document lists the tiers of each model."""
    schemas = _ask(url, "/v2/openapi.json")["components"]["schemas"]
    try:
        properties = schemas[f"{model}.InferRequest"]["properties"]["parameters"]["properties"]
        return tuple(properties["tier"]["enum"])
    except KeyError as error:
        raise GatewayError(
            f"the OpenAPI document of {url} names no tiers of {model} ({error} is missing). Is it a Mipgate?"
        ) from error


def _ask(url: str, path: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(url.rstrip("/") + path, data=body, headers=authorization())
    if body is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode(errors="replace")
        remedy = f" Give a key with --key or {KEY}." if error.code == _UNAUTHORIZED else ""
        raise GatewayError(f"{url}{path} answers {error.code}: {said}{remedy}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise GatewayError(
            f"no gateway answers at {url} ({reason}). Start one with `mipgate serve`, or give its address."
        ) from error
