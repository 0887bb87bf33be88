"""Peak FLOPs of accelerators."""

import pytest

from datarater.meta_training.configs import default
from datarater.meta_training.run.peak import peak_flops, run_peak_flops


@pytest.mark.parametrize(
    ("kind", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("NVIDIA L40S", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_known_accelerator(kind: str, bfloat16: float | None) -> None:
    assert peak_flops(kind, "bfloat16") == bfloat16
    assert peak_flops(kind, "float64") is None


def test_products_of_float32_count_at_the_precision_that_jax_uses() -> None:
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32") == 156e12
    assert peak_flops("TPU v4", "float32") == 275e12


def test_a_configured_peak_counts_for_every_device() -> None:
    config = default.get_config()
    assert run_peak_flops(config, 4) is None  # a CPU
    config.peak_flops = 1e12
    assert run_peak_flops(config, 4) == 4e12
