"""The number format of the computation: if the config leaves it open, bfloat16 where the hardware supports it."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from easyrec_mm.protos.train_pb2 import Precision

# Keras dtype policies.
FLOAT32, MIXED_BFLOAT16, MIXED_FLOAT16 = "float32", "mixed_bfloat16", "mixed_float16"

# Flags of Linux's /proc/cpuinfo for bfloat16 dot products and matrix products.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# NVIDIA Ampere.
_FIRST_BFLOAT16_COMPUTE_CAPABILITY = (8, 0)


def dtype_policy(precision: int) -> str:
    """Return the Keras dtype policy for a config's precision on this machine."""
    if precision == Precision.AUTO:
        return MIXED_BFLOAT16 if _has_bfloat16() else FLOAT32
    named: dict[int, str] = {Precision.BFLOAT16: MIXED_BFLOAT16, Precision.FLOAT16: MIXED_FLOAT16}
    return named.get(precision, FLOAT32)


def device_name() -> str:
    """Return what computes: the GPU that this process sees, by its name, or "the CPU"."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "the CPU"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "a GPU"))


def _has_bfloat16() -> bool:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return tuple(details.get("compute_capability", (0, 0))) >= _FIRST_BFLOAT16_COMPUTE_CAPABILITY
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in cpu.splitlines() if line.startswith(("flags", "Features"))), "")
    return bool(_BFLOAT16_FLAGS & set(flags.split()))
