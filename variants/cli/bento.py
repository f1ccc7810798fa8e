"""`mipgate bento`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import bentoml
import click
from bentoml.exceptions import NotFound

from variants.catalog import Catalog
from variants.store import sha256

NAME = "mipgate"
_VERSION_DIGITS = 12


@click.command(name="bento")
def command() -> None:
    """Pack the released variants of every model into a Bento; an unchanged one is found again.

    Prints the Bento's tag. `bentoml build` in the project's folder does the same, always anew.

    Example: bentoml serve $(mipgate bento)
    """
    click.echo(pack())


def pack() -> str:
    """Builds the Bento, unless one of the same content is there; returns its tag.

    Raises:
        click.ClickException: No model is registered, there is no source tree, or BentoML failed.
    """
    catalog = Catalog()
    tags = catalog.packed_tags()
    if not tags:
        raise click.ClickException("no model is registered. Run `mipgate build digits` first.")
    root = _project_root()
    tag = f"{NAME}:{_content_digest(root, tags)}"
    try:
        bentoml.get(tag)
    except NotFound:
        _build(root, tag)
    return tag


def _project_root() -> Path:
    root = Path(__file__).resolve().parents[2]
    if not (root / "bentofile.yaml").is_file():
        raise click.ClickException(
            "this installation has no bentofile.yaml. Run from a clone of the project: `make install`."
        )
    return root


def _content_digest(root: Path, tags: list[str]) -> str:
    """Digest of all that the Bento holds: the build file, the sources, the models' tags."""
    digest = hashlib.sha256("\n".join(sorted(tags)).encode())
    sources = [
        path for folder in ("service", "variants", "compression") for path in (root / folder).rglob("*.py")
    ]
    for path in sorted([root / "bentofile.yaml", *sources]):
        digest.update(f"{path.relative_to(root)} {sha256(path)}".encode())
    return digest.hexdigest()[:_VERSION_DIGITS]


def _build(root: Path, tag: str) -> None:
    command = [sys.executable, "-m", "bentoml", "build", "--version", tag.partition(":")[2], str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    if done.returncode != 0:
        raise click.ClickException(f"`bentoml build` failed:\n{done.stdout}{done.stderr}")
