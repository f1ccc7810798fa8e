"""MLServer: a custom runtime around the session, with its adaptive batching; the Open Inference Protocol."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from loadtests.bench.peers.session import served


class OnnxRuntime(MLModel):
    """One ONNX file."""

    async def load(self) -> bool:
        """Opens the model."""
        self.model = served()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        outputs = self.model.run(self.model.rows(rows))
        return InferenceResponse(
            model_name=self.name,
            id=payload.id,
            outputs=[NumpyCodec.encode_output("output", outputs)],
        )
