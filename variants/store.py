"""Entries of BentoML's model store, published whole or not at all, and verified by sha256. No pickle.

`variants.catalog` alone uses it: what an entry means is the catalog's business.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models.model import ModelContext, ModelInfo, ModelOptions, ModelStore
from bentoml.exceptions import NotFound

from variants.host import installed_version

_MODULE = "mipgate"
_REMEDY = "Build the model again, or restore the store."


class CatalogError(Exception):
    """The catalog cannot do what was asked; the message says why and what to do."""


class DamagedArtifactError(CatalogError):
    """Files in the store are not what was published."""


class Store:
    """The model store that BentoML is configured with (in an exported Bento, the Bento's own), or another.

    Args:
        root: The folder of another store; None for BentoML's.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._store = BentoMLContainer.model_store.get() if root is None else ModelStore(root)
        self.root = Path(self._store._path)

    @property
    def staging(self) -> Path:
        """Where entries grow: beside the store, behind any link, as a rename does not cross disks."""
        return self.root.resolve().parent / ".mipgate-staging"

    def folder(self, tag: str) -> Path:
        """Where the files of an entry lie, whether or not it is there."""
        name, _, version = tag.partition(":")
        return self.root / name / version

    def tags(self, pattern: str, labels: Mapping[str, str]) -> list[str]:
        """Tags whose name matches a glob pattern and whose labels include these; unreadable ones left out."""
        found = []
        for folder in sorted(self.root.glob(f"{pattern}/*/")):
            tag = f"{folder.parent.name}:{folder.name}"
            with suppress(DamagedArtifactError):
                if labels.items() <= self._info(tag).labels.items():
                    found.append(tag)
        return found

    @contextmanager
    def publishing(self, tag: str, labels: Mapping[str, str]) -> Iterator[Path]:
        """A folder that becomes the entry by one rename when the block ends well.

        An intact entry that is there already is kept; a damaged one is replaced.
        """
        target = self.folder(tag)
        if target.exists() and not self.is_intact(tag):
            shutil.rmtree(target)
        self.root.mkdir(parents=True, exist_ok=True)
        stage = self.staging / f"{os.getpid()}-{secrets.token_hex(4)}"
        stage.mkdir(parents=True)
        try:
            yield stage
            _seal(stage, tag, dict(labels))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                stage.rename(target)
            _write_atomically(target.parent / "latest", target.name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def delete(self, tag: str) -> None:
        """Deletes an entry; nothing happens when it is not there."""
        if not self.folder(tag).exists():
            return
        try:
            self._store.delete(tag)
        except Exception:  # afterwards BentoML reads the entry's neighbours, which may be damaged
            if self.folder(tag).exists():
                raise

    def own_bytes(self, tag: str) -> int:
        """Bytes that deleting an entry frees: files that it shares with others stay."""
        files = (path.stat() for path in self.folder(tag).rglob("*") if path.is_file())
        return sum(stat.st_size for stat in files if stat.st_nlink == 1)

    def verify(self, tag: str) -> None:
        """Compares every file with the digest that was published.

        Raises:
            DamagedArtifactError: The entry or a file is missing, unreadable or altered.
        """
        for name, digest in self._published(tag).items():
            path = self.folder(tag) / name
            if not path.is_file():
                raise DamagedArtifactError(f"{name} of {tag} is missing. {_REMEDY}")
            if sha256(path) != digest:
                raise DamagedArtifactError(
                    f"{name} of {tag} has another sha256 than was published. {_REMEDY}"
                )

    def is_intact(self, tag: str) -> bool:
        """Whether `verify` would pass."""
        try:
            self.verify(tag)
        except DamagedArtifactError:
            return False
        return True

    def is_complete(self, tag: str) -> bool:
        """Whether the entry and all its files are there; their content is not read."""
        try:
            return all((self.folder(tag) / name).is_file() for name in self._published(tag))
        except DamagedArtifactError:
            return False

    def _published(self, tag: str) -> dict[str, str]:
        """The digest of every file by name, as published."""
        try:
            return dict(self._info(tag).metadata["files"])  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedArtifactError(f"{tag} has no readable list of files. {_REMEDY}") from error

    def _info(self, tag: str) -> ModelInfo:
        try:
            return self._store.get(tag).info
        except NotFound as error:
            raise DamagedArtifactError(f"{tag} is not in the store. {_REMEDY}") from error
        except Exception as error:  # what BentoML raises for a damaged model.yaml has no common base
            raise DamagedArtifactError(f"model.yaml of {tag} cannot be read. {_REMEDY}") from error


def bento_references() -> dict[str, set[str]]:
    """Tags of the store's entries that each Bento refers to."""
    return {str(bento.tag): {str(m.tag) for m in bento.info.all_models} for bento in bentoml.bentos.list()}


def check_unpacked(what: str, tags: Set[str]) -> None:
    """Checks that no Bento packs any of these.

    Raises:
        CatalogError: One does.
    """
    if bentos := [bento for bento, packed in bento_references().items() if tags & set(packed)]:
        raise CatalogError(
            f"{what} is packed in {', '.join(bentos)}. Delete the Bento first: `bentoml delete {bentos[0]}`."
        )


def human_bytes(count: float) -> str:
    """`123 B`, `1.2 KB`, `3.4 MB`: decimal units."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def bytes_of(*paths: Path) -> int:
    """Bytes of files, and of all files below folders; what has several names counts once."""
    found = {}
    for path in paths:
        for each in (path, *path.rglob("*")):
            with suppress(FileNotFoundError):  # others delete too
                if each.is_file() and not each.is_symlink():
                    stat = each.stat()
                    found[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(found.values())


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Shares the bytes of an immutable file where the disk allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _seal(stage: Path, tag: str, labels: dict[str, str]) -> None:
    """Writes BentoML's `model.yaml` with the digest of every file."""
    metadata: dict[str, Any] = {"files": {path.name: sha256(path) for path in sorted(stage.iterdir())}}
    info = ModelInfo(
        tag=bentoml.Tag.from_str(tag),
        module=_MODULE,
        api_version="v1",
        signatures={},
        labels=labels,
        options=ModelOptions(),
        metadata=metadata,
        context=ModelContext("onnx", {"onnxruntime": installed_version("onnxruntime") or "unknown"}),
    )
    with (stage / "model.yaml").open("w", encoding="utf-8") as file:
        info.dump(file)


def _write_atomically(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        fresh.write_text(text)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
