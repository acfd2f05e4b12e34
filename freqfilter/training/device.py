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

# A device that others have filled up, and its libraries, say so in words of their own.
OUT_OF_DEVICE_MEMORY = ("CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}  # as Linux names them
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def wrap_memory_errors() -> Iterator[None]:
    """A block in which running out of memory, on any device, becomes a user's error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error)
        on_device = isinstance(error, torch.OutOfMemoryError) or any(words in said for words in OUT_OF_DEVICE_MEMORY)
        if not isinstance(error, MemoryError) and not on_device and "can't allocate memory" not in said:
            raise
        message = (
            "out of CUDA memory: lower batch_size, window_length or hidden_size, or use device=cpu"
            if on_device
            else "out of memory: lower batch_size, hidden_size, window_length, windows_per_epoch or n_samples"
        )
        raise TrainingError("out_of_memory", message) from error


@dataclass(frozen=True)
class Accelerator:
    """A device and the precision of the forward pass on it.

    Attributes:
        device: Where tensors live.
        dtype: What autocast computes in; None: float32 throughout.
        threads: Processor threads of this process.
    """

    device: torch.device
    dtype: torch.dtype | None
    threads: int

    @classmethod
    def open(cls, params: TrainingParams) -> Self:
        """Set up this process as the parameters ask.

        Raises:
            UserError: If there is no CUDA device though one is asked for, or it cannot compute in the precision.
        """
        if params.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: PyTorch finds no CUDA device here; use device=auto or device=cpu")
        on_cuda = params.device != "cpu" and torch.cuda.is_available()
        if params.threads:
            torch.set_num_threads(params.threads)
        _keep_freed_memory()
        if params.deterministic:
            # cuBLAS sums in an order of its own unless it is given fixed workspaces (CUDA documentation, cuBLAS,
            # "Results Reproducibility"); read when the first CUDA context is made.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        use_deterministic_algorithms(params.deterministic)
        # Nothing here reads memory that it has not written; to fill all of it would take a tenth of a step's time.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic = params.deterministic
        torch.backends.cudnn.benchmark = False
        # TensorFloat-32 has 10 of float32's 23 bits, and is no faster here.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        device, threads = torch.device("cuda" if on_cuda else "cpu"), torch.get_num_threads()
        if params.precision == "auto":
            fast = cls(device, torch.bfloat16, threads)
            return fast if not on_cuda and _made_for_bf16() and not fast._refusal() else replace(fast, dtype=None)
        accelerator = cls(device, PRECISIONS.get(params.precision), threads)
        if reason := accelerator._refusal():
            raise UserError(
                f"precision={params.precision}: {device.type.upper()} cannot train in it ({reason}); use fp32"
            )
        return accelerator

    def autocast(self) -> AbstractContextManager[Any]:
        """The block in which the forward pass is computed."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def describe(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            return f"CUDA, {torch.cuda.get_device_name(self.device)}, {self.precision}"
        return f"CPU, {self.threads} thread{'s' if self.threads > 1 else ''}, {self.precision}"

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``."""
        return next((name for name, dtype in PRECISIONS.items() if dtype is self.dtype), "fp32")

    def peak_memory_mb(self) -> float:
        """The most memory that this process has held so far, on a CUDA device that tensors have taken there, in MB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return held / 1e6 if sys.platform == "darwin" else held / 1e3  # bytes there, kilobytes elsewhere

    def _refusal(self) -> str | None:
        """Why a recurrent network cannot be trained in this precision; None: it can."""
        if self.dtype is None:
            return None
        try:
            with torch.random.fork_rng(devices=[]), self.autocast():
                probe = torch.nn.LSTM(2, 2).to(self.device)
                answer = probe(torch.zeros(1, 1, 2, device=self.device))[0]
                answer.sum().backward()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        # cuDNN's may take float16 whatever is asked for, and only where that is asked for are small gradients scaled.
        if self.device.type == "cuda" and answer.dtype is not self.dtype:
            return f"its recurrent layers would compute in {answer.dtype}"
        return None


def use_deterministic_algorithms(wanted: bool) -> None:
    """Have PyTorch use only algorithms that give the same bits each time, or let it choose.

    ``torch.use_deterministic_algorithms`` is the same after seconds, which importing PyTorch's compiler takes.
    """
    torch.set_deterministic_debug_mode("error" if wanted else "default")


def _keep_freed_memory() -> None:
    """Have memory that is freed stay with this process to its end, where its C library can be told.

    It would go back to the system after each training step, to be asked for and cleared again in the next, a third of
    the step's time. All threads share one stock of it, since each would keep what it has needed at its highest.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_ARENA_MAX, 1)


def _made_for_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; one that imitates it is slower than in float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace").split()
    except OSError:
        return False
    return not BF16_INSTRUCTIONS.isdisjoint(flags)
