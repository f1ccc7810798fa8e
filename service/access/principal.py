"""Who a caller is, and the three roles: each may do what the ones before it may."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do: send requests, operate models and rollouts, hand out keys."""

    INFER = "infer"
    OPERATE = "operate"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        """Whether this role may do what `needed` may."""
        return _RANKS[self] >= _RANKS[needed]


_RANKS = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever sent a request.

    Attributes:
        who: The name that the audit shows: `key ci (3f2a9c0d1e4b)`, `token alice`, `loopback`, `anyone`.
        role: What it may do.
        key: The id of its API key, for whoever has one.
        expires: When its token ends, in Unix time, for whoever has one.
    """

    who: str
    role: Role
    key: str | None = None
    expires: float | None = None


ANYONE = Principal("anyone", Role.INFER)
LOOPBACK = Principal("loopback", Role.ADMIN)
