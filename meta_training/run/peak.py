"""Peak FLOPs of known accelerators, against which model FLOPs utilization is measured."""

from __future__ import annotations

from typing import NamedTuple

import jax
from ml_collections import ConfigDict


class _Peak(NamedTuple):
    """Dense matrix products of one device, in FLOPs per second, by the dtype of the operands.

    Products of float32 count at what JAX's default precision uses: TF32 on NVIDIA's GPUs, and
    bfloat16 on TPUs.
    """

    bfloat16: float
    float32: float


# The first name that a device kind contains decides, in lower case. Sources: the data sheets of the
# accelerators, without sparsity; a device is what JAX calls one (a TPU v4 or v5p chip).
_PEAKS = {
    "h100 pcie": _Peak(756e12, 378e12),
    "h100 nvl": _Peak(835e12, 417e12),
    "h100": _Peak(989.4e12, 494.7e12),
    "h200 nvl": _Peak(835e12, 417e12),
    "h200": _Peak(989.4e12, 494.7e12),
    "a100": _Peak(312e12, 156e12),
    "nvidia l4": _Peak(121e12, 60e12),
    "tpu v4": _Peak(275e12, 275e12),
    "tpu v5 lite": _Peak(197e12, 197e12),
    "tpu v5e": _Peak(197e12, 197e12),
    "tpu v5": _Peak(459e12, 459e12),  # also "TPU v5p"
    "tpu v6": _Peak(918e12, 918e12),  # "TPU v6 lite", "TPU v6e"
}
# Other devices, whose names contain one above.
_OTHERS = ("nvidia l40", "nvidia rtx a1000", "tpu v4 lite")


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOPs per second of one device; None if the device is not known.

    Args:
        device_kind: Kind of the device, as JAX names it.
        dtype: Computation in "bfloat16", "float32" or "float64".

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3", "bfloat16")
        989400000000000.0
        >>> peak_flops("cpu", "float32") is None
        True
    """
    kind = device_kind.lower()
    if dtype not in _Peak._fields or kind.startswith(_OTHERS):
        return None
    peak = next((peak for name, peak in _PEAKS.items() if name in kind), None)
    return None if peak is None else float(getattr(peak, dtype))


def run_peak_flops(config: ConfigDict, devices: int) -> float | None:
    """Returns the FLOPs per second that a run's devices can do together; None if not known.

    Args:
        config: The whole config. The inner models, which cost most, decide the dtype.
        devices: Number of devices.
    """
    kind = jax.devices()[0].device_kind
    peak = config.peak_flops or peak_flops(kind, config.inner_model.dtype)
    return peak * devices if peak else None
