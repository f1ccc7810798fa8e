"""BentoML as its documentation shows it: an API of arrays around a session; and the same, batchable."""

from __future__ import annotations

import bentoml
import numpy as np

from loadtests.bench.peers.session import MAX_BATCH, served


@bentoml.service(name="plain", workers=1)
class Plain:
    """One model behind BentoML's own request path."""

    def __init__(self) -> None:
        self.model = served()

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """The first output of a batch of rows."""
        return self.model.run(self.model.rows(rows))


@bentoml.service(name="batchable", workers=1)
class Batchable:
    """The same, with BentoML's adaptive batching."""

    def __init__(self) -> None:
        self.model = served()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """The first output of a batch of rows."""
        return self.model.run(self.model.rows(rows))
