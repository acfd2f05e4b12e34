"""Device, precision, threads and determinism."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils import deterministic

from freqfilter.config import TrainingParams
from freqfilter.errors import TrainingError, UserError

# Errors of a full device that are no torch.OutOfMemoryError.
OUT_OF_DEVICE_MEMORY = ("CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}  # as Linux names them
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def wrap_memory_errors() -> Iterator[None]:
    """Convert out-of-memory errors of any device inside the block to ``TrainingError``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in OUT_OF_DEVICE_MEMORY):
            message = "out of CUDA memory: lower batch_size, window_length or hidden_size, or use device=cpu"
        elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            message = "out of memory: lower batch_size, hidden_size, window_length, windows_per_epoch or n_samples"
        else:
            raise
        raise TrainingError("out_of_memory", message) from error


@dataclass(frozen=True)
class Accelerator:
    """Device and precision of the forward pass."""

    device: torch.device
    dtype: torch.dtype | None  # of autocast; None: float32 throughout
    threads: int  # CPU threads of this process

    @classmethod
    def open(cls, params: TrainingParams) -> Self:
        """Configure PyTorch in this process: device, threads, determinism and precision.

        Raises:
            UserError: If ``device=cuda`` and there is no CUDA device, or the device does not support the precision.
        """
        if params.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: PyTorch finds no CUDA device; use device=auto or device=cpu")
        on_cuda = params.device != "cpu" and torch.cuda.is_available()
        if params.threads:
            torch.set_num_threads(params.threads)
        _keep_freed_memory()
        if params.deterministic:
            # For cuBLAS (CUDA documentation, cuBLAS, "Results Reproducibility"); read with the first CUDA context.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        use_deterministic_algorithms(params.deterministic)
        # No code here reads uninitialized memory; filling it would take a tenth of a step's time.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic = params.deterministic
        torch.backends.cudnn.benchmark = False
        # TensorFloat-32 has 10 of float32's 23 mantissa bits, and is no faster here.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        device, threads = torch.device("cuda" if on_cuda else "cpu"), torch.get_num_threads()
        if params.precision == "auto":
            bf16 = cls(device, torch.bfloat16, threads)
            fast = not on_cuda and _has_bf16_instructions()
            return bf16 if fast and not bf16._unsupported_reason() else replace(bf16, dtype=None)
        accelerator = cls(device, PRECISIONS.get(params.precision), threads)
        if reason := accelerator._unsupported_reason():
            raise UserError(
                f"precision={params.precision}: not supported on {device.type.upper()} ({reason}); use fp32"
            )
        return accelerator

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the forward pass, with the accelerator's data type."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def describe(self) -> str:
        """Text such as ``CPU, 2 threads, fp32``."""
        if self.device.type == "cuda":
            return f"CUDA, {torch.cuda.get_device_name(self.device)}, {self.precision}"
        return f"CPU, {self.threads} thread{'s' if self.threads > 1 else ''}, {self.precision}"

    @property
    def precision(self) -> str:
        """Precision of the forward pass: ``fp32``, ``bf16`` or ``fp16``."""
        return next((name for name, dtype in PRECISIONS.items() if dtype is self.dtype), "fp32")

    def peak_memory_mb(self) -> float:
        """Peak memory so far, MB: of this process, or on a CUDA device of its tensors."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes on macOS, kilobytes elsewhere

    def _unsupported_reason(self) -> str | None:
        """Reason why a recurrent network cannot be trained in this precision; None: it can."""
        if self.dtype is None:
            return None
        try:
            with torch.random.fork_rng(devices=[]), self.autocast():
                lstm = torch.nn.LSTM(2, 2).to(self.device)
                output = lstm(torch.zeros(1, 1, 2, device=self.device))[0]
                output.sum().backward()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        # cuDNN may use float16 in place of bfloat16, but only with precision=fp16 are small gradients scaled.
        if self.device.type == "cuda" and output.dtype is not self.dtype:
            return f"its recurrent layers would compute in {output.dtype}"
        return None


def use_deterministic_algorithms(enabled: bool) -> None:
    """Enable or disable PyTorch's deterministic algorithms.

    ``torch.use_deterministic_algorithms`` does the same, but imports PyTorch's compiler, which takes seconds.
    """
    torch.set_deterministic_debug_mode("error" if enabled else "default")


def _keep_freed_memory() -> None:
    """Configure glibc's ``malloc`` to keep freed memory for reuse, in one arena for all threads."""
    # Requesting and zeroing it again takes a third of a training step. Each arena would keep its own peak.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_ARENA_MAX, 1)


def _has_bf16_instructions() -> bool:
    """Whether the CPU has instructions for bfloat16; without them bfloat16 is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace").split()
    except OSError:
        return False
    return not BF16_INSTRUCTIONS.isdisjoint(flags)
