"""`POST /v1/feedback`: labels that come after their answers."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.access.principal import Principal
from service.admin.bodies import LabelBody, named, read_bytes
from service.admin.desk import Desk, answer
from service.errors import BadRequestError, ConflictError

_MOST_LABELS = 1000
_ONE: TypeAdapter[LabelBody] = TypeAdapter(LabelBody)
_SEVERAL: TypeAdapter[list[LabelBody]] = TypeAdapter(list[LabelBody])


async def feedback(desk: Desk, request: Request, who: Principal) -> Response:
    """Takes a label, or a list of them: all or none."""
    if not desk.takes_labels:
        raise ConflictError("this gateway keeps no answers for labels. Set MIPGATE_FEEDBACK to rollouts.")
    content = await read_bytes(request)
    try:
        if content.lstrip().startswith(b"["):
            labels = _SEVERAL.validate_json(content)
        else:
            labels = [_ONE.validate_json(content)]
    except ValidationError as error:
        raise named(error) from error
    if not 1 <= len(labels) <= _MOST_LABELS:
        raise BadRequestError(f"the body has {len(labels)} labels. Send 1 to {_MOST_LABELS}.")
    by_request = {label.request_id: label.label for label in labels}
    if len(by_request) < len(labels):
        raise BadRequestError('"request_id" is there twice. Send one label for each answer.')
    await desk.judge(by_request)
    return answer({"accepted": len(by_request)}, 202)
