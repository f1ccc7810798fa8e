"""The gateway's configuration, read once: command line > environment `MIPGATE_*` > file > default.

The file is TOML, named by `MIPGATE_CONFIG`, else `config.toml` in the Mipgate home.
"""

from __future__ import annotations

import os
import tomllib
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from variants.home import mipgate_home


class ConfigError(ValueError):
    """A setting has a value that it cannot have."""


class Config(BaseSettings):
    """Settings of one gateway. The command line passes its options on as environment variables."""

    model_config = SettingsConfigDict(env_prefix="MIPGATE_", extra="ignore", frozen=True)

    workers: int = Field(1, ge=1, le=64, description="Worker processes; each owns cores/workers threads.")
    max_body_bytes: int = Field(64 * 1024**2, ge=1024, description="Largest request body, in bytes.")
    max_queue_requests: int = Field(
        1024, ge=1, description="Requests that may wait for one variant; more are refused with 503."
    )
    max_queue_bytes: int = Field(
        256 * 1024**2, ge=1024, description="Input bytes that may wait for one variant."
    )
    max_batch_rows: int = Field(32, ge=1, description="Most rows that requests are batched to.")
    inline_ms: float = Field(
        1.0, ge=0, description="Batches predicted to take less run on the event loop, others in the executor."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _file())


def _file() -> Path:
    return Path(os.environ.get("MIPGATE_CONFIG") or mipgate_home() / "config.toml")


@cache
def config() -> Config:
    """This process's configuration.

    Raises:
        ConfigError: A value does not fit, or the file cannot be read; the message names which.
    """
    if os.environ.get("MIPGATE_CONFIG") and not _file().is_file():
        raise ConfigError(f"MIPGATE_CONFIG = {str(_file())!r}: there is no such file. Change it.")
    try:
        return Config()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"MIPGATE_{name.upper()} = {first['input']!r}: {first['msg']}. Change it."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{_file()} is not TOML: {error}. Mend that line.") from error
