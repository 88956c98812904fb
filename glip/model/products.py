"""Matrix products on a CPU by the faster of torch's two libraries.

torch multiplies float32 with MKL, which uses half of an AMD processor's width: oneDNN, which is in torch too and uses
AVX-512 there, takes half the time. Elsewhere, with gradients, compiled and in other types torch's choice stays.
"""

import os
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from glip.shapes import Tensor


class Linear(nn.Linear):
    """torch's linear layer, by the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; either matrix may be a transposed view."""
    if not by_onednn(x):
        return F.linear(x, weight, bias)
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


def by_onednn(x: Tensor) -> bool:
    """Whether ``linear`` multiplies ``x`` with oneDNN."""
    exact = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return exact and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _is_onednn_faster()


@cache
def _is_onednn_faster() -> bool:
    """Decided by the processor, not by a measurement, so that results repeat bit for bit."""
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not libraries or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    described, listed = os.environ.get("PROCESSOR_IDENTIFIER", ""), Path("/proc/cpuinfo")  # Windows, Linux
    amd = "AuthenticAMD" in described or (listed.is_file() and "AuthenticAMD" in listed.read_text())
    return amd and hasattr(torch.ops.mkldnn, "_linear_pointwise")
