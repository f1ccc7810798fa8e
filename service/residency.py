"""Which variants keep their sessions when not all of them may: those that were used last."""

from __future__ import annotations

from collections.abc import Iterable

from service.loaded import LoadedVariant


def to_close(variants: Iterable[LoadedVariant], budget_bytes: int) -> list[LoadedVariant]:
    """The open variants to close so that the others fit, those not used for longest first.

    Args:
        variants: All of a worker.
        budget_bytes: What their sessions may take together, as profiled; 0 for no bound. The one that was
            used last stays in any case.
    """
    if not budget_bytes:
        return []
    newest_first = sorted(
        {variant.key: variant for variant in variants if variant.is_open}.values(),
        key=lambda variant: variant.last_used,
        reverse=True,
    )
    closing, total = [], 0
    for position, variant in enumerate(newest_first):
        total += variant.profile.memory_bytes
        if position and total > budget_bytes:
            closing.append(variant)
            total -= variant.profile.memory_bytes
    return closing[::-1]
