"""The only reader and writer of the store: variants and cards as entries of BentoML's model store.

A variant is the entry `model.recipe:build`, immutable. A model's card is the entry `model:<time>`; each
change publishes a new one, so a Bento that packs a card packs a consistent whole.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from compression.container import PACKED_SUFFIX
from variants import document
from variants.card import Card
from variants.home import subfolder
from variants.scorecard import Scorecard
from variants.serving_spec import ServingSpec
from variants.store import (
    CatalogError,
    DamagedArtifactError,
    Store,
    bento_references,
    check_unpacked,
    link_or_copy,
)
from variants.variant import Life, Variant, VariantId

log = logging.getLogger("mipgate.catalog")

MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
SCORECARD_FILE = "scorecard.json"
VARIANT_FILE = "variant.json"
CARD_FILE = "card.json"
SAMPLES_FILE = "samples.npz"
VALIDATION_FILE = "validation.npz"
DISTRIBUTIONS_FILE = "distributions.json"
_CARD_DATA = (SAMPLES_FILE, VALIDATION_FILE, DISTRIBUTIONS_FILE)
_NAME = re.compile(r"[a-z0-9_-]{1,63}")  # of a model, and of nothing that a path may mean besides
# Beside a card; no file of a model may be called like them.
KEPT_NAMES = frozenset({*_CARD_DATA, CARD_FILE, "model.yaml"})


class ModelNotFoundError(CatalogError):
    """No such model is registered."""


class CatalogBusyError(CatalogError):
    """Another changes the same card, and was not done in time."""


@dataclass(frozen=True)
class StoredVariant:
    """A variant as it lies in the store."""

    variant: Variant
    scorecard: Scorecard
    folder: Path

    @property
    def model_path(self) -> Path:
        """Path of the model file, plain or packed."""
        return model_file(self.folder)

    @property
    def golden_path(self) -> Path:
        """Path of the rows with the outputs that it gave where it was built."""
        return self.folder / GOLDEN_FILE


def model_file(folder: Path) -> Path:
    """Path of the model in the folder of a variant: a packed file where there is one, else plain ONNX."""
    plain = folder / MODEL_FILE
    packed = plain.with_suffix(PACKED_SUFFIX)
    return packed if packed.is_file() else plain


class Catalog:
    """Models and variants in a BentoML model store.

    Args:
        pinned_cards: Card tag by model, for a Bento that serves what it packed; None reads the newest of
            every model.
        root: The folder of a store of its own; None for the one that BentoML is configured with.
    """

    def __init__(self, pinned_cards: Mapping[str, str] | None = None, root: Path | None = None) -> None:
        self._store = Store(root)
        self._pinned = pinned_cards

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self._store.root

    @property
    def staging(self) -> Path:
        """Where entries of the store grow, and a process that was killed leaves some."""
        return self._store.staging

    @property
    def is_pinned(self) -> bool:
        """Whether it serves what a Bento packed, whatever is released later."""
        return self._pinned is not None

    # Reading

    def models(self) -> list[str]:
        """Names of the registered models, sorted."""
        if self._pinned is not None:
            return sorted(self._pinned)
        if not self.root.is_dir():
            return []
        names = (path.name for path in self.root.iterdir() if path.is_dir() and "." not in path.name)
        return sorted(name for name in names if self._card_tags(name))

    def card_tag(self, model: str) -> str:
        """The tag of the card that is in force, its content not verified.

        Raises:
            ModelNotFoundError: The model is not registered.
        """
        if self._pinned is not None:
            tag = self._pinned.get(model)
        else:
            tag = next(reversed(self._card_tags(model)), None)
        if tag is None:
            raise self._not_found(model)
        return tag

    def card(self, model: str) -> Card:
        """The card in force, verified; a damaged one is passed over for the one before it.

        A pinned card decides what is released; profiles are facts and are taken from the newest card too.

        Raises:
            ModelNotFoundError: The model is not registered.
            DamagedArtifactError: No card is what was published.
        """
        if self._pinned is None:
            return self._newest_intact_card(model)[1]
        card = self._read_card(self.card_tag(model))
        try:
            measured = self._newest_intact_card(model)[1].hosts
        except CatalogError:
            measured = {}  # the pinned card has profiles of its own
        released = tuple(entry for entry in card.entries if entry.life is Life.RELEASED)
        return replace(card, entries=released, hosts={**card.hosts, **measured})

    def card_file(self, model: str, name: str) -> Path:
        """Path of a file beside a model's card: rows, distributions, or one of the spec's files.

        A card that was published before there were distributions has none until the next build.
        """
        tag = self.card_tag(model) if self.is_pinned else self._newest_intact_card(model)[0]
        return self._store.folder(tag) / name

    def find(self, variant: VariantId) -> StoredVariant | None:
        """The variant if it is in the store, its files not verified, else None.

        Raises:
            DamagedArtifactError: Its documents cannot be read, such as those of another version.
        """
        folder = self._store.folder(variant.tag)
        if not (folder / VARIANT_FILE).is_file():
            return None
        try:
            return StoredVariant(
                document.read(Variant, folder / VARIANT_FILE),
                document.read(Scorecard, folder / SCORECARD_FILE),
                folder,
            )
        except document.DocumentError as error:
            raise DamagedArtifactError(
                f"{variant} cannot be read: {error}. Run `mipgate build` again."
            ) from error

    def open(self, variant: VariantId) -> StoredVariant:
        """The variant, every file verified against the digests that were published.

        Raises:
            DamagedArtifactError: A file is missing or altered.
        """
        self._store.verify(variant.tag)
        stored = self.find(variant)
        if stored is None:
            raise DamagedArtifactError(f"{variant} is not complete in the store. Run `mipgate build` again.")
        return stored

    def packed_tags(self) -> list[str]:
        """Tags of what a Bento packs: each model's card and its released variants that are complete."""
        tags = []
        for model in self.models():
            try:
                tag, card = self._newest_intact_card(model)
            except CatalogError as error:
                log.error("model %s is left out: %s", model, error)
                continue
            released = [e.id.tag for e in card.entries if e.life is Life.RELEASED and e.failure is None]
            missing = [tag for tag in released if not self._store.is_complete(tag)]
            for lost in missing:
                log.error("%s is left out: it is not complete in the store", lost)
            tags += [tag, *(kept for kept in released if kept not in missing)]
        return tags

    # Writing

    def publish(self, variant: Variant, scorecard: Scorecard, files: Mapping[str, Path]) -> StoredVariant:
        """Puts an artifact into the store, all of it or nothing; keeps what is there already."""
        labels = {"kind": "variant", "model": variant.id.model, "recipe": variant.id.recipe}
        try:
            self.find(variant.id)
        except DamagedArtifactError:  # whole, and in words of another version
            self._store.delete(variant.id.tag)
        with self._store.publishing(variant.id.tag, labels) as stage:
            for name, source in files.items():
                shutil.copyfile(source, stage / name)
            document.write(stage / VARIANT_FILE, variant)
            document.write(stage / SCORECARD_FILE, scorecard)
        return self.open(variant.id)

    def register(self, card: Card, folder: Path) -> None:
        """Publishes a card with its labelled rows and the spec's files, which lie in the folder."""
        self._write_card(card, folder)

    def change(self, model: str, edit: Callable[[Card], Card], wait_s: float | None = None) -> Card:
        """Publishes what `edit` makes of the newest card; changes of one model happen one at a time.

        Args:
            model: Whose card.
            edit: Makes the new card of the one in force.
            wait_s: How long to wait for another's change; None for as long as it takes.

        Raises:
            CatalogBusyError: Another's change took longer than that.
            CatalogError: The model is not registered, no card is intact, or the change cannot be made.
        """
        try:
            alone = self.lock(model).acquire(timeout=wait_s)
        except Timeout as error:
            raise CatalogBusyError(
                f"the card of {model} is being changed by another process. Try again in a moment."
            ) from error
        with alone:
            tag, before = self._newest_intact_card(model)
            after = edit(before)
            if after != before:
                self._write_card(after, self._store.folder(tag))
            return after

    def lock(self, model: str) -> FileLock:
        """The lock that every writer of a model's card holds; it can be taken again by its holder."""
        return FileLock(subfolder("locks") / f"card-{model}.lock", is_singleton=True)

    def build_lock(self, model: str) -> FileLock:
        """The lock that a build holds while artifacts of it lie in the store that no card names yet."""
        return FileLock(subfolder("locks") / f"build-{model}.lock", is_singleton=True)

    def building(self) -> list[str]:
        """Models that are being built now, into this store or, as searches and replicates, into another."""
        found = []
        for path in sorted(subfolder("locks").glob("build-*.lock")):
            model = path.stem.removeprefix("build-")
            try:
                with self.build_lock(model).acquire(timeout=0):
                    pass
            except Timeout:
                found.append(model)
        return found

    def forget(self, variant: VariantId) -> None:
        """Deletes an artifact with its entry and its profiles.

        Raises:
            CatalogError: A Bento refers to it.
        """
        with self.lock(variant.model):
            check_unpacked(str(variant), {variant.tag})
            self.change(variant.model, lambda card: card.without(variant))
            self._store.delete(variant.tag)  # last: what no card names is garbage, not damage

    def forget_model(self, model: str) -> None:
        """Deletes a model: its artifacts, then its cards.

        Raises:
            CatalogBusyError: It is being built.
            CatalogError: A Bento refers to it.
        """
        try:
            with self.build_lock(model).acquire(timeout=0), self.lock(model):
                artifacts = self._store.tags(f"{model}.*", {"kind": "variant", "model": model})
                tags = [*artifacts, *self._card_tags(model)]
                check_unpacked(model, set(tags))
                for tag in tags:
                    self._store.delete(tag)
        except Timeout as error:
            raise CatalogBusyError(f"{model} is being built. Wait for the build, or stop it.") from error

    def collect(self, keep_cards: int = 3, dry_run: bool = False) -> tuple[dict[str, int], list[str]]:
        """Deletes what nothing refers to: old cards, and artifacts that no card or Bento names.

        Returns:
            The tags that were deleted, or would be, with the bytes that each had for itself; and the models
            that were left alone, as they are being built.
        """
        packed = {tag for tags in bento_references().values() for tag in tags}
        deleted: dict[str, int] = {}
        busy = []
        for model in self.models():
            try:
                with self.build_lock(model).acquire(timeout=0), self.lock(model):
                    for tag in self._unreferenced(model, packed, keep_cards):
                        deleted[tag] = self._store.own_bytes(tag)
                        if not dry_run:
                            self._store.delete(tag)
            except Timeout:
                busy.append(model)
            except DamagedArtifactError as error:
                log.error("what %s has in the store is kept: %s", model, error)
        return deleted, busy

    def _unreferenced(self, model: str, packed: set[str], keep_cards: int) -> list[str]:
        intact, _ = self._newest_intact_card(model)
        cards = self._card_tags(model)
        kept = {intact, *cards[-keep_cards:]} | packed
        return sorted(
            {tag for tag in cards if tag not in kept} | self._unnamed(model, kept & set(cards)) - packed
        )

    # Cards

    def _card_tags(self, model: str) -> list[str]:
        """Tags of a model's cards, oldest first: their versions begin with the time."""
        folder = self.root / model
        if not _NAME.fullmatch(model) or not folder.is_dir():
            return []
        return [f"{model}:{v.name}" for v in sorted(folder.iterdir()) if (v / CARD_FILE).is_file()]

    def _newest_intact_card(self, model: str) -> tuple[str, Card]:
        damage: Exception | None = None
        for tag in reversed(self._card_tags(model)):
            try:
                return tag, self._read_card(tag)
            except (DamagedArtifactError, document.DocumentError) as error:
                log.error("a card is passed over for an older one: %s", error)
                damage = damage or error
        if damage is not None:
            raise DamagedArtifactError(f"no card of {model} is intact: {damage}") from damage
        raise self._not_found(model)

    def _not_found(self, model: str) -> ModelNotFoundError:
        known = ", ".join(self.models()) or "none"
        name = model[:80]
        return ModelNotFoundError(
            f'no model "{name}" is built; there are: {known}. Run `mipgate build {name}`, and before it '
            "`mipgate add` if it is not registered."
        )

    def _unnamed(self, model: str, cards: set[str]) -> set[str]:
        """Artifacts of a model that none of these cards names; none at all when one cannot be read."""
        try:
            named = {entry.id.tag for tag in cards for entry in self._read_card(tag).entries}
        except (DamagedArtifactError, document.DocumentError) as error:
            log.warning("artifacts of %s are kept: %s", model, error)
            return set()
        return set(self._store.tags(f"{model}.*", {"kind": "variant", "model": model})) - named

    def _read_card(self, tag: str) -> Card:
        self._store.verify(tag)
        return document.read(Card, self._store.folder(tag) / CARD_FILE)

    def _write_card(self, card: Card, data: Path) -> None:
        moment = datetime.now(UTC).strftime("%Y%m%dt%H%M%S%f")
        tag = f"{card.spec.model}:{moment}-{secrets.token_hex(3)}"
        with self._store.publishing(tag, {"kind": "card", "model": card.spec.model}) as stage:
            for name in card_files(card.spec):
                if name != DISTRIBUTIONS_FILE or (data / name).is_file():  # builds of old had none
                    link_or_copy(data / name, stage / name)
            document.write(stage / CARD_FILE, card)


def card_files(spec: ServingSpec) -> tuple[str, ...]:
    """Names of the files that lie beside a model's card."""
    return (*_CARD_DATA, *spec.files)
