"""The key that requests bring: from the environment alone, so that no command, message or report has it."""

from __future__ import annotations

import os

KEY = "MIPGATE_KEY"
KEY_HELP = f"the gateway's key; better in {KEY} than here, where others see it"


def take_key(key: str | None) -> None:
    """Takes a key from the command line, for this process and those that it starts."""
    if key:
        os.environ[KEY] = key


def authorization() -> dict[str, str]:
    """The header that brings the key, if there is one."""
    key = os.environ.get(KEY, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}
