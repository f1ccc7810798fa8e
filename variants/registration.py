"""Models that a user added: where their copies lie, and how they are found again. Torch-free."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from compression.signature import Signature
from variants import document
from variants.home import mipgate_home
from variants.store import CatalogError, sha256

GRAPH_FILE = "model.onnx"
ROWS_FILE = "rows.npz"
LABELS = "labels"
_DOCUMENT = "registration.json"
_FOLDER = "registered"


class RegistrationError(CatalogError):
    """A registration is damaged, or there already is another of its name."""


@dataclass(frozen=True)
class GraphSource:
    """An ONNX file with rows for it; both are copies in the registration's folder.

    Attributes:
        signature: Inputs and outputs.
        metric: Name of the quality metric.
        files: Sha256 of each copied file by name.
        allow_non_finite: Whether inputs may hold NaN and infinities.
        origin: Name of the file that it was copied from.
    """

    signature: Signature
    metric: str
    files: dict[str, str]
    allow_non_finite: bool
    origin: str


@dataclass(frozen=True)
class Registration:
    """A model that was added.

    Attributes:
        name: What it is called from then on.
        spec: `module:attribute` of its spec, or None.
        graph: The ONNX source, or None.
    """

    name: str
    spec: str | None = None
    graph: GraphSource | None = None

    def path(self, name: str) -> Path:
        """Path of one of its files, compared with the digest that was registered.

        Raises:
            RegistrationError: It is missing or altered.
        """
        path = folder_of(self.name) / name
        expected = self.graph.files.get(name) if self.graph else None
        if expected is None or not path.is_file() or sha256(path) != expected:
            raise RegistrationError(
                f"{name} of the added model {self.name} is missing or altered. Run `mipgate add` again."
            )
        return path


@dataclass(frozen=True)
class AddJob:
    """What to take in.

    Attributes:
        source: Path of an ONNX file, or `module:attribute` of a spec.
        data: Path of the rows of an ONNX file, or None.
        name: What to call the model; None for the file's or the spec's own name.
        metric: Name of the metric; None for the usual one.
        labels: Name of the array that holds the labels.
        allow_non_finite: Whether inputs may hold NaN and infinities.
        replace: Whether another model of this name gives way.
    """

    source: str
    data: Path | None = None
    name: str | None = None
    metric: str | None = None
    labels: str = LABELS
    allow_non_finite: bool = False
    replace: bool = False


@dataclass(frozen=True)
class Added:
    """What was taken in.

    Attributes:
        registration: Its record.
        rows: How many different rows came with it; 0 for a spec.
        labelled: Whether they have labels.
        changed: False when the very same was registered before.
    """

    registration: Registration
    rows: int
    labelled: bool
    changed: bool


def folder_of(name: str) -> Path:
    """Where the files of an added model lie, whether or not it is there."""
    return mipgate_home() / _FOLDER / name


def registered() -> list[str]:
    """Names of the added models, sorted."""
    found = (mipgate_home() / _FOLDER).glob(f"*/{_DOCUMENT}")
    return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))


def find_registration(name: str) -> Registration | None:
    """The added model of this name, or None.

    Raises:
        DocumentError: Its record cannot be read.
    """
    if name not in registered():
        return None
    return document.read(Registration, folder_of(name) / _DOCUMENT)


def remove_registration(name: str) -> None:
    """Deletes an added model's files, at once for whoever looks."""
    folder = folder_of(name)
    gone = folder.with_name(f".{name}-{secrets.token_hex(4)}.old")
    folder.rename(gone)
    shutil.rmtree(gone)


def write_registration(folder: Path, registration: Registration) -> None:
    """Completes a folder of an added model with its record."""
    document.write(folder / _DOCUMENT, registration)
