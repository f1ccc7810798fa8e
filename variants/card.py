"""The card of a model: the catalog's one mutable record, published as a new snapshot at each change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from variants.host import Host
from variants.profile import Profile
from variants.serving_spec import ServingSpec
from variants.store import CatalogError
from variants.variant import Life, Status, VariantId


class UnknownVariantError(LookupError):
    """No such variant; the message lists what exists."""


@dataclass(frozen=True)
class Failure:
    """Why a variant has no artifact, or none that may serve."""

    status: Status
    reason: str


@dataclass(frozen=True)
class Entry:
    """One build of one recipe.

    Attributes:
        id: The variant.
        life: Candidate, released or retired.
        steps: The recipe's steps as JSON.
        failure: Why there is no artifact, or None.
    """

    id: VariantId
    life: Life
    steps: list[dict[str, Any]]
    failure: Failure | None = None


@dataclass(frozen=True)
class HostProfiles:
    """What was measured on one host: profiles by `recipe@build`, and runtimes that refused one."""

    host: Host
    profiles: dict[str, list[Profile]] = field(default_factory=dict)
    refusals: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """All that is known of a model beside the artifacts themselves.

    Attributes:
        spec: What serving needs to know.
        entries: Every build that was not removed, the reference's first.
        hosts: Profiles by host fingerprint.
    """

    spec: ServingSpec
    entries: tuple[Entry, ...] = ()
    hosts: dict[str, HostProfiles] = field(default_factory=dict)

    @property
    def is_released(self) -> bool:
        """Whether any variant is released, so that later builds arrive as candidates."""
        return any(entry.life is Life.RELEASED for entry in self.entries)

    def find(self, recipe: str, build: str | None = None) -> Entry:
        """The entry of an exact build, or the released build of a recipe, else its newest.

        One that is retired is meant by its recipe only where there is no other.

        Raises:
            UnknownVariantError: There is none.
        """
        matches = [e for e in self.entries if e.id.recipe == recipe and build in (None, e.id.build)]
        if not matches:
            wanted = recipe if build is None else f"{recipe}@{build}"
            known = ", ".join(entry.id.version for entry in self.entries) or "none"
            raise UnknownVariantError(f'{self.spec.model} has no variant "{wanted}". There are {known}.')
        lives = {e.life: e for e in matches}  # the newest of each
        return lives.get(Life.RELEASED) or lives.get(Life.CANDIDATE) or matches[-1]

    def with_entry(self, entry: Entry) -> Card:
        """The card with this entry added, or put in the place of the same build's."""
        if any(known.id == entry.id for known in self.entries):
            entries = tuple(entry if known.id == entry.id else known for known in self.entries)
        else:
            entries = (*self.entries, entry)
        return replace(self, entries=entries)

    def without(self, variant: VariantId) -> Card:
        """The card without this build and its profiles."""
        hosts = {
            fingerprint: replace(
                known,
                profiles={k: v for k, v in known.profiles.items() if k != variant.version},
                refusals={k: v for k, v in known.refusals.items() if k != variant.version},
            )
            for fingerprint, known in self.hosts.items()
        }
        return replace(self, entries=tuple(e for e in self.entries if e.id != variant), hosts=hosts)

    def with_life(self, variant: VariantId, life: Life) -> Card:
        """The card with this build in another life; releasing one retires the recipe's released build.

        Raises:
            CatalogError: It has no artifact that could be released.
        """
        failure = self.find(variant.recipe, variant.build).failure
        if failure is not None and life is Life.RELEASED:
            raise CatalogError(f"{variant} was {failure.status.value}: {failure.reason}. Build it first.")

        def moved(entry: Entry) -> Entry:
            if entry.id == variant:
                return replace(entry, life=life)
            same_recipe = entry.id.recipe == variant.recipe
            if life is Life.RELEASED and same_recipe and entry.life is Life.RELEASED:
                return replace(entry, life=Life.RETIRED)
            return entry

        return replace(self, entries=tuple(moved(entry) for entry in self.entries))

    def measured_on(self, host: Host) -> HostProfiles:
        """What was measured on a host; empty where nothing was."""
        return self.hosts.get(host.fingerprint, HostProfiles(host))

    def with_profiles(
        self, host: Host, profiles: Mapping[str, list[Profile]], refusals: Mapping[str, dict[str, str]]
    ) -> Card:
        """The card with these profiles of this host; other variants' stay as they are."""
        known = self.measured_on(host)
        merged = replace(
            known, profiles={**known.profiles, **profiles}, refusals={**known.refusals, **refusals}
        )
        return replace(self, hosts={**self.hosts, host.fingerprint: merged})
