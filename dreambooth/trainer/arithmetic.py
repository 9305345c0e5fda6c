"""How a device is made to compute fast: each choice in a function of its own, with why it is made and where it is not.

A GPU is not asked for anything that changes what `deterministic: true` promises: TF32 and channels last give the same
bits at every run. cuDNN's search for the fastest kernel would not, and stays off.
"""

from __future__ import annotations

import torch


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16 by itself (AVX512-BF16, AMX): then pictures are drawn in about 0.6 of
    float32's time (benchmarks/class_images.py), while one that only imitates it takes several times as long. torch before
    2.6 does not tell."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in asked if hasattr(torch.cpu, name))


def tensor_floats(device: torch.device, compute: torch.dtype) -> bool:
    """Whether what stays in float32 is multiplied as TF32 on a card: with 10 bits behind the point it is finer than the
    bf16 (7) and as fine as the fp16 (10) beside it, and many times faster than float32. Where nothing is mixed, float32
    was asked for and is float32."""
    return device.type == "cuda" and compute != torch.float32


def set_tensor_floats(on: bool) -> None:
    """Has matrix products and convolutions of float32 computed as TF32, or as float32 (torch's default is one of each)."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def memory_format(device: torch.device, compute: torch.dtype) -> torch.memory_format:
    """How convolutions' weights lie in memory: tensor cores want the channels last, and cuDNN turns each input and output
    around where they are not. For float32, and on a processor (measured: 0.98 to 1.01 of the time), it is no gain."""
    turned = device.type == "cuda" and compute != torch.float32
    return torch.channels_last if turned else torch.preserve_format


def steps_any_order() -> bool:
    """Whether torch's fused AdamW takes weights with channels last. Before torch 2.6 it compares the strides of sides of
    length 1 too, which are anything, and refuses 1x1 convolutions (pytorch#134546)."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return version >= (2, 6)


def summary(device: torch.device, compute: torch.dtype) -> list[str]:
    """What a run on this device with this precision uses, in `doctor`'s words."""
    found = []
    if tensor_floats(device, compute):
        found.append("TF32 for what stays in float32")
    if memory_format(device, compute) is torch.channels_last:
        whole = "whole models whose optimizer is not adamw" if steps_any_order() else "whole models"
        found.append(f"convolutions with channels last (all but {whole})")
    if device.type == "cpu":
        drawn = "bf16" if multiplies_bf16() else "float32, since this processor has no bf16"
        found.append(f"class images are drawn in {drawn}")
    return found
