"""What the admin API reads, and how it says which field does not fit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request

from compression.recipe import RecipeName, Step
from service.errors import BadRequestError, MediaTypeError, TooLargeError
from service.protocol import MAX_ID_LENGTH

_LARGEST_BYTES = 1024**2

T = TypeVar("T", bound=BaseModel)


class Body(BaseModel):
    """A body with no other fields than these."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KeyBody(Body):
    """A key to be made."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[\w .@:/-]+$")
    role: Literal["infer", "operate", "admin"]
    rate_per_s: Annotated[float, Field(gt=0, le=1e6)] | None = None


class BuildBody(Body):
    """A recipe to be built: one of the spec's by its name, or one of the caller's own."""

    recipe: RecipeName | None = None
    name: RecipeName | None = None
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=32)] | None = None
    seed: int | None = Field(None, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _is_one_of_both(self) -> BuildBody:
        if (self.recipe is None) == (self.name is None) or (self.name is None) != (self.steps is None):
            raise ValueError('send either "recipe", or "name" and "steps"')
        if self.seed is not None and self.steps is None:
            raise ValueError('"seed" goes with "name" and "steps"')
        return self


class SearchBody(Body):
    """What to search for."""

    min_accuracy: float = Field(0.99, gt=0, le=1.5)
    objective: Literal["latency", "size"] = "latency"
    trials: int = Field(20, ge=1, le=1000)


class VersionBody(Body):
    """What the caller saw of the rollout that it changes."""

    version: int | None = Field(None, ge=1)


class LabelBody(Body):
    """A label that came later."""

    request_id: str = Field(min_length=1, max_length=MAX_ID_LENGTH, pattern="^[ -~]*$")
    label: Any


class SessionBody(Body):
    """A key or token that the console's page signs in with."""

    key: str = Field(min_length=1, max_length=8192)


async def read_body(request: Request, kind: type[T]) -> T:
    """The request's JSON body; an empty one has no fields.

    Raises:
        BadRequestError: It is no JSON or does not fit; the message names the field.
        MediaTypeError: It is not called JSON, which a page of another site cannot do without being asked.
        TooLargeError: It is larger than any of these may be.
    """
    content = await read_bytes(request)
    try:
        return kind.model_validate_json(content or b"{}")
    except ValidationError as error:
        raise named(error) from error


async def read_bytes(request: Request) -> bytes:
    """The request's body.

    Raises:
        MediaTypeError: It is not called JSON.
        TooLargeError: It is larger than any body here may be.
    """
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _LARGEST_BYTES:
            raise TooLargeError(f"the body is larger than {_LARGEST_BYTES} bytes. Send less.")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content and media_type != "application/json":
        raise MediaTypeError(f'media type "{media_type[:80]}" is not read here. Send application/json.')
    return content


def named(error: ValidationError) -> BadRequestError:
    """The error that names the first field that does not fit; never its value, which may be a key."""
    first: Any = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if not field:
        return BadRequestError(f"the body does not fit: {first['msg']}. Send a JSON object.")
    return BadRequestError(f'"{field}" does not fit: {first["msg"]}. Change it.')
