"""The only reader and writer of the store: variants and cards in BentoML's model store.

A variant is the entry `model.recipe:build`, immutable. A model's card is the entry `model:<time>`; each
change publishes a new one, so a Bento that packs a card packs a consistent whole. Every entry lists the
sha256 of its files in its metadata, and is published by one rename.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models.model import ModelContext, ModelInfo, ModelOptions
from bentoml.exceptions import NotFound
from filelock import FileLock

from variants import document
from variants.card import Card
from variants.home import subfolder
from variants.host import installed_version
from variants.scorecard import Scorecard
from variants.variant import Life, Variant, VariantId

log = logging.getLogger("mipgate.catalog")

MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
SCORECARD_FILE = "scorecard.json"
VARIANT_FILE = "variant.json"
CARD_FILE = "card.json"
SAMPLES_FILE = "samples.npz"
VALIDATION_FILE = "validation.npz"
_CARD_DATA = (SAMPLES_FILE, VALIDATION_FILE)
_KIND = "mipgate"
_REMEDY = "Build the model again, or restore the store."


class CatalogError(Exception):
    """The catalog cannot do what was asked; the message says why and what to do."""


class ModelNotFoundError(CatalogError):
    """No such model is registered."""


class DamagedArtifactError(CatalogError):
    """Files in the store are not what was published."""


@dataclass(frozen=True)
class StoredVariant:
    """A variant as it lies in the store."""

    variant: Variant
    scorecard: Scorecard
    folder: Path

    @property
    def model_path(self) -> Path:
        """Path of the ONNX file."""
        return self.folder / MODEL_FILE

    @property
    def golden_path(self) -> Path:
        """Path of the rows with the outputs that it gave where it was built."""
        return self.folder / GOLDEN_FILE


class Catalog:
    """Models and variants in a BentoML model store.

    Args:
        pinned_cards: Card tag by model, for a Bento that serves what it packed; None reads the newest of
            every model.
    """

    def __init__(self, pinned_cards: Mapping[str, str] | None = None) -> None:
        self._store = BentoMLContainer.model_store.get()
        self.root = Path(self._store._path)
        self._pinned = pinned_cards

    # Reading

    def models(self) -> list[str]:
        """Names of the registered models, sorted."""
        if self._pinned is not None:
            return sorted(self._pinned)
        if not self.root.is_dir():
            return []
        entries = (path.name for path in self.root.iterdir() if path.is_dir() and "." not in path.name)
        return sorted(name for name in entries if self._newest_card(name) is not None)

    def card_tag(self, model: str) -> str:
        """The tag of the card that is in force.

        Raises:
            ModelNotFoundError: The model is not registered.
        """
        tag = self._pinned.get(model) if self._pinned is not None else self._newest_card(model)
        if tag is None:
            known = ", ".join(self.models()) or "none"
            raise ModelNotFoundError(
                f'no model "{model}" is registered; there are: {known}. Run `mipgate build {model}`.'
            )
        return tag

    def card(self, model: str) -> Card:
        """The card in force, verified.

        A pinned card decides what is released; profiles are facts and are taken from the newest card too.

        Raises:
            ModelNotFoundError: The model is not registered.
            DamagedArtifactError: The card's files are not what was published.
        """
        tag = self.card_tag(model)
        card = self._read_card(tag)
        if self._pinned is None:
            return card
        newest = self._newest_card(model)
        measured = self._read_card(newest).hosts if newest not in (None, tag) else {}
        released = tuple(entry for entry in card.entries if entry.life is Life.RELEASED)
        return replace(card, entries=released, hosts={**card.hosts, **measured})

    def card_file(self, model: str, name: str) -> Path:
        """Path of `samples.npz` or `validation.npz` of a model."""
        return self._folder(self.card_tag(model)) / name

    def find(self, variant: VariantId) -> StoredVariant | None:
        """The variant if it is in the store, its files not verified, else None."""
        folder = self._folder(variant.tag)
        if not (folder / VARIANT_FILE).is_file():
            return None
        return StoredVariant(
            document.read(Variant, folder / VARIANT_FILE),
            document.read(Scorecard, folder / SCORECARD_FILE),
            folder,
        )

    def open(self, variant: VariantId) -> StoredVariant:
        """The variant, every file verified against the digests that were published.

        Raises:
            DamagedArtifactError: A file is missing or altered.
        """
        self._verify(variant.tag)
        stored = self.find(variant)
        if stored is None:
            raise DamagedArtifactError(f"{variant} is not complete in the store. Run `mipgate build` again.")
        return stored

    # Writing

    def publish(self, variant: Variant, scorecard: Scorecard, files: Mapping[str, Path]) -> StoredVariant:
        """Puts an artifact into the store, all of it or nothing; keeps what is there already."""
        with self._staged(variant.id.tag) as stage:
            for name, source in files.items():
                shutil.copyfile(source, stage / name)
            document.write(stage / VARIANT_FILE, variant)
            document.write(stage / SCORECARD_FILE, scorecard)
            labels = {"kind": "variant", "model": variant.id.model, "recipe": variant.id.recipe}
            self._seal(stage, variant.id.tag, labels)
        return self.open(variant.id)

    def register(self, card: Card, samples: Path, validation: Path) -> None:
        """Publishes a card with its labelled rows."""
        self._write_card(card, {SAMPLES_FILE: samples, VALIDATION_FILE: validation})

    def change(self, model: str, edit: Callable[[Card], Card]) -> Card:
        """Publishes what `edit` makes of the newest card; changes of one model happen one at a time.

        Raises:
            ModelNotFoundError: The model is not registered.
        """
        with self.lock(model):
            tag = self._newest_card(model) or self.card_tag(model)
            before = self._read_card(tag)
            after = edit(before)
            if after != before:
                folder = self._folder(tag)
                self._write_card(after, {name: folder / name for name in _CARD_DATA})
            return after

    def lock(self, model: str) -> FileLock:
        """The lock that every writer of a model's card holds; it can be taken again by its holder."""
        return FileLock(subfolder("locks") / f"card-{model}.lock", is_singleton=True)

    def build_lock(self, model: str) -> FileLock:
        """The lock that a build holds while artifacts of it lie in the store that no card names yet."""
        return FileLock(subfolder("locks") / f"build-{model}.lock", is_singleton=True)

    def remove(self, variant: VariantId) -> None:
        """Deletes an artifact from the store.

        Raises:
            CatalogError: A Bento refers to it.
        """
        if bentos := [bento for bento, tags in bento_references().items() if variant.tag in tags]:
            raise CatalogError(
                f"{variant} is packed in {', '.join(bentos)}. Delete the Bento first: "
                f"`bentoml delete {bentos[0]}`."
            )
        if self._folder(variant.tag).is_dir():
            self._delete(variant.tag)

    def collect(self, keep_cards: int = 3) -> list[str]:
        """Deletes what nothing refers to: old cards, and artifacts that no card or Bento names.

        Returns:
            The tags that were deleted.
        """
        packed = {tag for tags in bento_references().values() for tag in tags}
        deleted = []
        for model in self.models():
            with self.build_lock(model), self.lock(model):
                cards = self._card_tags(model)
                kept = set(cards[-keep_cards:]) | packed
                named = {e.id.tag for tag in cards if tag in kept for e in self._read_card(tag).entries}
                doomed = [tag for tag in cards if tag not in kept]
                doomed += [tag for tag in self._artifact_tags(model) if tag not in named | packed]
                for tag in doomed:
                    self._delete(tag)
                deleted += doomed
        return deleted

    # The store itself

    def _folder(self, tag: str) -> Path:
        name, _, version = tag.partition(":")
        return self.root / name / version

    def _card_tags(self, model: str) -> list[str]:
        """Tags of a model's cards, oldest first: their versions begin with the time."""
        folder = self.root / model
        if not folder.is_dir():
            return []
        return [f"{model}:{v.name}" for v in sorted(folder.iterdir()) if (v / CARD_FILE).is_file()]

    def _newest_card(self, model: str) -> str | None:
        return next(reversed(self._card_tags(model)), None)

    def _artifact_tags(self, model: str) -> list[str]:
        """Tags of a model's artifacts; what cannot be read cannot be told to be one."""
        wanted = {"kind": "variant", "model": model}
        tags = []
        for folder in sorted(self.root.glob(f"{model}.*/*/")):
            tag = f"{folder.parent.name}:{folder.name}"
            with suppress(DamagedArtifactError):
                if wanted.items() <= self._info(tag).labels.items():
                    tags.append(tag)
        return tags

    def _delete(self, tag: str) -> None:
        try:
            self._store.delete(tag)
        except Exception:  # afterwards BentoML reads the entry's neighbours, which may be damaged
            if self._folder(tag).exists():
                raise

    def _info(self, tag: str) -> ModelInfo:
        try:
            return self._store.get(tag).info
        except NotFound as error:
            raise DamagedArtifactError(f"{tag} is not in the store. {_REMEDY}") from error
        except Exception as error:  # what BentoML raises for a damaged model.yaml has no common base
            raise DamagedArtifactError(f"model.yaml of {tag} cannot be read. {_REMEDY}") from error

    def _read_card(self, tag: str) -> Card:
        self._verify(tag)
        return document.read(Card, self._folder(tag) / CARD_FILE)

    def _write_card(self, card: Card, data: Mapping[str, Path]) -> None:
        moment = datetime.now(UTC).strftime("%Y%m%dt%H%M%S%f")
        tag = f"{card.spec.model}:{moment}-{secrets.token_hex(3)}"
        with self._staged(tag) as stage:
            for name, source in data.items():
                _link_or_copy(source, stage / name)
            document.write(stage / CARD_FILE, card)
            self._seal(stage, tag, {"kind": "card", "model": card.spec.model})

    @contextmanager
    def _staged(self, tag: str) -> Iterator[Path]:
        """A folder on the store's own disk that becomes the entry when the block ends well."""
        target = self._folder(tag)
        if target.exists() and not self._is_intact(tag):
            shutil.rmtree(target)
        staging = Path(BentoMLContainer.tmp_bento_store_dir.get())
        stage = staging / f"mipgate-{os.getpid()}-{secrets.token_hex(4)}"
        stage.mkdir(parents=True)
        try:
            yield stage
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                stage.rename(target)
            _write_atomically(target.parent / "latest", target.name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _seal(self, stage: Path, tag: str, labels: dict[str, str]) -> None:
        """Writes BentoML's `model.yaml` with the digest of every file."""
        metadata: dict[str, Any] = {"files": {path.name: sha256(path) for path in sorted(stage.iterdir())}}
        versions = {"onnxruntime": installed_version("onnxruntime") or "unknown"}
        info = ModelInfo(
            tag=bentoml.Tag.from_str(tag),
            module=_KIND,
            api_version="v1",
            signatures={},
            labels=labels,
            options=ModelOptions(),
            metadata=metadata,
            context=ModelContext("onnx", versions),
        )
        with (stage / "model.yaml").open("w", encoding="utf-8") as file:
            info.dump(file)

    def _is_intact(self, tag: str) -> bool:
        try:
            self._verify(tag)
        except DamagedArtifactError:
            return False
        return True

    def _verify(self, tag: str) -> None:
        try:
            published: dict[str, str] = dict(self._info(tag).metadata["files"])  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedArtifactError(f"{tag} has no readable list of files. {_REMEDY}") from error
        for name, digest in published.items():
            path = self._folder(tag) / name
            if not path.is_file():
                raise DamagedArtifactError(f"{name} of {tag} is missing. {_REMEDY}")
            if sha256(path) != digest:
                raise DamagedArtifactError(
                    f"{name} of {tag} has another sha256 than was published. {_REMEDY}"
                )


def released_tags(catalog: Catalog) -> list[str]:
    """Tags of what a Bento packs: each model's card and its released variants."""
    tags = []
    for model in catalog.models():
        try:
            released = [e.id.tag for e in catalog.card(model).entries if e.life is Life.RELEASED]
        except (DamagedArtifactError, document.DocumentError) as error:
            log.error("model %s is left out: %s", model, error)
            continue
        tags += [catalog.card_tag(model), *released]
    return tags


def bento_references() -> dict[str, set[str]]:
    """Tags of the store's entries that each Bento refers to."""
    return {str(bento.tag): {str(m.tag) for m in bento.info.all_models} for bento in bentoml.bentos.list()}


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link_or_copy(source: Path, target: Path) -> None:
    """Shares the bytes of an immutable file where the disk allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_atomically(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    fresh.write_text(text)
    fresh.replace(path)
