"""The gateway's configuration, read once: command line > environment `MIPGATE_*` > file > default.

The file is TOML, named by `MIPGATE_CONFIG`, else `config.toml` in the Mipgate home.
"""

from __future__ import annotations

import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
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

    workers: int = Field(
        0, ge=0, le=64, description="Worker processes; each owns cores/workers threads. 0 for one per core, "
        "up to 4, where one thread is fast enough for all models, and one elsewhere.",
    )  # fmt: skip
    max_body_bytes: int = Field(64 * 1024**2, ge=1024, description="Largest request body, in bytes.")
    max_json_bytes: int = Field(
        16 * 1024**2,
        ge=1024,
        description="Longest JSON part of a request, which memory holds many times over.",
    )
    max_queue_requests: int = Field(
        1024, ge=1, description="Requests that may wait for one variant; more are refused with 503."
    )
    max_queue_bytes: int = Field(
        256 * 1024**2, ge=1024, description="Input bytes that may wait for one variant."
    )
    catalog: Literal["auto", "store"] = Field(
        "auto", description="What a Bento's gateway serves: auto, what it packed; store, the store in "
        "BENTOML_HOME, which it follows and where rollouts release and retire.",
    )  # fmt: skip
    memory_budget_bytes: int = Field(
        0, ge=0, description="Memory for the sessions of all variants of a worker; beyond it, those not used "
        "for longest are closed and open again on their next request. 0 for no bound.",
    )  # fmt: skip
    max_batch_rows: int = Field(32, ge=1, description="Most rows that requests are batched to.")
    inline_ms: float = Field(
        1.0, ge=0, description="Batches predicted to take less run on the event loop, others in the executor."
    )
    state: str = Field(
        "", description="URL of the database that workers share; empty for a SQLite file in the Mipgate home."
    )
    feedback_age_s: float = Field(
        24 * 3600.0, gt=0, description="Seconds that a label may come after its answer; ids are kept as long."
    )
    feedback: Literal["rollouts", "all", "none"] = Field(
        "rollouts", description="Whose answers wait for labels: those of rollouts, all, or none."
    )
    shadow_copies_per_s: float = Field(
        50.0, ge=0, description="Most requests per second and worker that rollouts copy to compare answers."
    )
    history_age_s: float = Field(
        90 * 24 * 3600.0,
        gt=0,
        description="Seconds that rollouts and jobs are kept after they ended, and lines of the audit.",
    )
    admin_key: SecretStr | None = Field(
        None, description="A key of the role admin, or the file that holds it; others are made with it."
    )
    require_keys: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether inference needs a key; auto: as soon as there is any."
    )
    container: Literal["auto", "yes", "no"] = Field(
        "auto", description="Whether this is a container, where operations need a key even from loopback."
    )
    session_s: float = Field(12 * 3600.0, gt=0, description="Seconds that the console stays signed in.")
    jwt_issuer: str = Field("", description="OpenID provider whose tokens are taken; empty for none.")
    jwt_audience: str = Field("", description="What its tokens must be meant for.")
    jwt_jwks: str = Field("", description="Its public keys (JWKS): a file, or an https address.")
    jwt_role_claim: str = Field("role", description="The claim with the role; `a.b` is b inside a.")
    jwt_roles: dict[str, Literal["infer", "operate", "admin"]] = Field(
        {}, description="What the claim's values mean here, if they are not the names of our roles."
    )

    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Form of the log; auto: for people on a terminal, JSON lines elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that the log tells; of libraries, warnings and worse."
    )
    log_requests: float = Field(
        0.01, ge=0, le=1, description="Share of the answered requests that get a line in the log."
    )
    log_requests_per_s: float = Field(
        20.0, gt=0, description="Most lines of answered requests in a second, per worker."
    )
    drift_share: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that drift is watched on; 0 for none."
    )
    drift_rows_per_s: float = Field(
        50.0, gt=0, description="Most rows that drift is watched on in a second, per worker."
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


_SECRETS = {"admin_key"}


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
        given = "(hidden)" if first["loc"][0] in _SECRETS else repr(first["input"])
        raise ConfigError(f"MIPGATE_{name.upper()} = {given}: {first['msg']}. Change it.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{_file()} is not TOML: {error}. Mend that line.") from error
