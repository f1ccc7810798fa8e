"""Half precision in training, where the hardware computes it natively."""

from __future__ import annotations

import torch
from torch import nn


class Autocast:
    """Mixed-precision training where the hardware computes half precision natively.

    Micikevicius et al. 2018, "Mixed Precision Training": weights, their updates and what needs range
    (normalizations, losses) stay float32, products are computed in half precision. Processors compute in
    bfloat16 (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training"), and so do GPUs that
    have it, others in float16 with dynamic loss scaling. Every training goes through it: from scratch,
    fine-tuning, distillation with its teacher. Without such hardware everything stays float32.

    Args:
        module: What is trained; its device decides.
        wanted: Whether to use it where it is.
    """

    def __init__(self, module: nn.Module, wanted: bool) -> None:
        self.device = next((parameter.device.type for parameter in module.parameters()), "cpu")
        if self.device == "cuda":
            self.enabled = wanted
            self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        else:
            self.enabled = wanted and native_bfloat16()
            self.dtype = torch.bfloat16
        # float16 loses small gradients; bfloat16 has the range of float32 and needs no scaling.
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.enabled and self.dtype is torch.float16)

    def context(self) -> torch.autocast:
        """Computes what runs inside it in half precision."""
        return torch.autocast(self.device, self.dtype, enabled=self.enabled)


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, so that autocast is worth it."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
