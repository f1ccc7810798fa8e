"""This host, as far as it decides how fast a model runs: CPU, features, cores and library versions."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What the kernels of onnxruntime and OpenVINO choose by.
_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bw", "avx512dq",
    "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
)  # fmt: skip
_LIBRARIES = ("onnxruntime", "onnxruntime-ep-openvino", "numpy")


@dataclass(frozen=True)
class Host:
    """What a profile is valid for.

    Attributes:
        fingerprint: Digest of all but `threads`; profiles of another fingerprint are not trusted.
        cpu: Model name.
        features: Instruction sets that matter.
        cores: Cores that this process may use, after affinity and cgroup quota.
        threads: Threads that one worker may give to a call; profiles say how many they were taken with.
        libraries: Versions of what executes.
    """

    fingerprint: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    threads: int
    libraries: dict[str, str]


def available_cores() -> int:
    """Cores that this process may use: its affinity, cut by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores  # no cgroup v2 here: no quota
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def installed_version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model name and relevant features of the first processor, as the kernel tells them."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n", maxsplit=1)[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    return fields.get("model name", "unknown"), tuple(flag for flag in _FEATURES if flag in flags)


def this_host(workers: int = 1) -> Host:
    """Describes this host for one of `workers` processes that share its cores."""
    cpu, features = _cpu()
    cores = available_cores()
    libraries = {name: found for name in _LIBRARIES if (found := installed_version(name))}
    facts = json.dumps([cpu, features, cores, libraries], sort_keys=True)
    fingerprint = hashlib.sha256(facts.encode()).hexdigest()[:12]
    return Host(fingerprint, cpu, features, cores, max(1, cores // workers), libraries)
