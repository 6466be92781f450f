"""The number format of models, on CPUs of several kinds."""

import pytest
import torch

from udrl_pipeline import precision


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [("AVX2", torch.float32), ("DEFAULT", torch.float32), ("AVX512", torch.bfloat16), ("SVE256", torch.bfloat16)],
)
def test_a_cpu_computes_in_bf16_only_where_it_has_instructions_for_it(
    capability: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert (precision.dtype(), precision.in_bf16()) == (dtype, dtype == torch.bfloat16)
    assert f"torch.{precision.name()}" == str(dtype)


def test_a_gpu_computes_in_bf16_whatever_the_cpu_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert precision.dtype() == torch.bfloat16
