"""The two forms that a model takes on its way through a recipe."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import onnx
import torch
from torch import nn

from compression.code_digest import code_digest
from compression.signature import Signature

# Torch's encoder layers would read the weights of their parts and call none of them: what is to be counted,
# watched or replaced has to be called.
torch.backends.mha.set_fastpath_enabled(False)


class Form(StrEnum):
    """Which of the two forms a pass takes or gives."""

    TORCH = "torch"
    ONNX = "onnx"


class Storage(StrEnum):
    """How a graph lies on disk."""

    PLAIN = "plain"
    HUFFMAN = "huffman"


@dataclass(frozen=True)
class TorchModel:
    """A PyTorch module whose positional arguments are the signature's inputs, in order."""

    module: nn.Module
    signature: Signature

    @property
    def form(self) -> Form:
        """The form, `torch`."""
        return Form.TORCH

    def weights_digest(self) -> str:
        """Sha256 over the names, shapes and values of the state dict."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
            digest.update(array.reshape(-1).numpy().tobytes())
        return digest.hexdigest()

    def digest(self) -> str:
        """Sha256 of its layers, its own code and its weights: of all that it computes."""
        facts = repr(self.module), code_digest(self.module), self.weights_digest()
        return hashlib.sha256("".join(facts).encode()).hexdigest()


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX graph with the signature that it keeps whatever is done to its inside.

    Attributes:
        proto: The graph.
        signature: What it takes and gives.
        storage: How it is written; whoever makes another graph of it makes a plain one.
    """

    proto: onnx.ModelProto
    signature: Signature
    storage: Storage = Storage.PLAIN

    @property
    def form(self) -> Form:
        """The form, `onnx`."""
        return Form.ONNX

    def weights_digest(self) -> str:
        """Sha256 of the graph with its weights."""
        return hashlib.sha256(self.proto.SerializeToString(deterministic=True)).hexdigest()


Model = TorchModel | OnnxModel
