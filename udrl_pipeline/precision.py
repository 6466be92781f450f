"""The number format that models compute in. Weights are kept in bf16 wherever this project writes them."""

from typing import Any

#: Instruction sets of a CPU with which bf16 is no slower than fp32. With AVX2 alone a product of matrices takes fifty times as long.
FAST_IN_BF16 = ("AVX512", "AMX", "SVE")


def in_bf16() -> bool:
    """Whether this machine computes in bf16: any GPU, and a CPU that has instructions for it."""
    import torch

    return torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability().startswith(FAST_IN_BF16)


def dtype() -> Any:
    """The torch dtype that models are loaded in: bf16 where the machine is fast in it, else fp32."""
    import torch

    return torch.bfloat16 if in_bf16() else torch.float32


def name() -> str:
    """The dtype as vLLM is told it."""
    return "bfloat16" if in_bf16() else "float32"
