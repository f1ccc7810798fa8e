"""What a person sees when a verb fails: fact and remedy, and status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from variants.build import BuildError
from variants.card import UnknownVariantError
from variants.document import DocumentError
from variants.runtime import RuntimeUnavailableError
from variants.serving_spec import SpecError
from variants.store import CatalogError
from variants.variant import VariantNameError
from variants.worker import WorkerError

_EXPECTED = (
    BuildError,
    CatalogError,
    DocumentError,
    RuntimeUnavailableError,
    SpecError,
    UnknownVariantError,
    VariantNameError,
    WorkerError,
)


@contextmanager
def explained() -> Iterator[None]:
    """Turns errors that a person can act on into a message and exit status 1."""
    try:
        yield
    except _EXPECTED as error:
        context = click.get_current_context(silent=True)
        if context and (context.find_root().obj or {}).get("verbose"):
            raise
        raise click.ClickException(str(error)) from error
