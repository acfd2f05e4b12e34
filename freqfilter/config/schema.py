"""Schema of the parameters: type, unit, range and description of each."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("use a number, not true or false")
    return value


def _integer(value: Any) -> Any:
    """Convert ``1e2`` and ``100.0`` to an integer."""
    try:
        number = float(_number(value))
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() and abs(number) < 2**53 else value


def _list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Number = Annotated[float, BeforeValidator(_number)]
Integer = Annotated[int, BeforeValidator(_integer)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1, le=10**9)]
CountOrZero = Annotated[Integer, Field(ge=0)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(_list), Field(min_length=1, max_length=200)]
Positives = Annotated[tuple[Positive, ...], BeforeValidator(_list), Field(min_length=1, max_length=200)]


def _parameter(description: str, *, path: bool = False, everyday: bool = False, **limits: Any) -> Any:
    """Field of a parameter: ``path``, relative to the command's folder; ``everyday``, shown by ``train --help``."""
    return Field(description=description, json_schema_extra={"path": path, "everyday": everyday}, **limits)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)


class SignalParams(_Section):
    """The signal model."""

    frequencies_hz: Positives = _parameter("frequency of each component, Hz", everyday=True)
    phase_distribution: Literal["fixed", "uniform"] = _parameter(
        "phases of the components: fixed, phases_deg; uniform, drawn for each recording"
    )
    phases_deg: Numbers | None = _parameter(
        "phase of each component, degrees; one number for all; null: spread evenly over 180°, or drawn"
    )
    amplitude_distribution: Literal["fixed", "rayleigh"] = _parameter(
        "amplitudes of the components: fixed; rayleigh, drawn for each recording, with Gaussian quadratures"
    )
    amplitudes: Positives = _parameter("amplitude of each component, or its root mean square; one number for all")
    memory_s: Positives | None = _parameter(
        "memory of each component, seconds, with Rayleigh amplitudes: amplitude and phase drift as a stochastic cycle; "
        "one number for all; null: no drift"
    )
    n_samples: Count = _parameter("samples of a realization", ge=2)
    duration_s: Positive = _parameter("time of the last sample, seconds")
    noise_std: NonNegative = _parameter("standard deviation of the Gaussian noise on the mixture", everyday=True)

    @property
    def sample_rate_hz(self) -> float:
        """Samples per second; the last sample is at ``duration_s``."""
        return (self.n_samples - 1) / self.duration_s

    @property
    def gaussian(self) -> bool:
        """Whether the quadratures of the components are Gaussian: the Kalman filter is then the limit."""
        return self.amplitude_distribution == "rayleigh"

    @model_validator(mode="before")
    @classmethod
    def _one_value_for_each_component(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        n_components = len(_list(values["frequencies_hz"]))
        if values["phases_deg"] is None and values["phase_distribution"] == "fixed":
            values["phases_deg"] = [180 * k / n_components for k in range(n_components)]
        for name in ("phases_deg", "amplitudes", "memory_s"):
            if values[name] is not None and len(given := _list(values[name])) == 1:
                values[name] = list(given) * n_components
        return values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        n_components = len(self.frequencies_hz)
        for name, example in (("phases_deg", 0.0), ("amplitudes", 1.0), ("memory_s", 100.0)):
            if (given := len(getattr(self, name) or self.frequencies_hz)) != n_components:
                raise ValueError(
                    f"frequencies_hz has {n_components} values and {name} has {given}; "
                    f"add {name}='{json.dumps([example] * n_components)}' with your values"
                )
        if duplicates := [f for f, n in Counter(self.frequencies_hz).items() if n > 1]:
            raise ValueError(f"frequencies_hz: {duplicates[0]:g} is duplicated; give each component its own frequency")
        if max(self.frequencies_hz) >= self.sample_rate_hz / 2:
            raise ValueError(
                f"frequencies_hz: {max(self.frequencies_hz):g} Hz is not below half of the sample rate, "
                f"{self.sample_rate_hz:g} Hz; raise n_samples or lower duration_s"
            )
        self._require_a_known_world()
        return self

    def _require_a_known_world(self) -> None:
        """Refuse the combinations of distributions for which there is neither a limit nor a best linear filter."""
        if self.phase_distribution == "fixed" and (self.gaussian or self.memory_s):
            given = "memory_s" if self.memory_s else "amplitude_distribution=rayleigh"
            raise ValueError(
                f"{given}: Gaussian quadratures have a uniform phase at each sample, so the phase cannot be fixed; "
                "add phase_distribution=uniform"
            )
        if self.memory_s and not self.gaussian:
            raise ValueError(
                "memory_s: the amplitude of a stochastic cycle drifts and is Rayleigh distributed, so it cannot be "
                "fixed; add amplitude_distribution=rayleigh"
            )
        if self.phase_distribution == "uniform" and self.phases_deg is not None:
            raise ValueError("phases_deg: not used with phase_distribution=uniform, which draws them; remove it")


class DataParams(_Section):
    """Windows, realizations and the split."""

    window_length: Count = _parameter("samples of a window", everyday=True)
    noise: Literal["fresh", "fixed"] = _parameter(
        "training noise: fresh, drawn anew for each window and epoch; fixed, the training realization"
    )
    split: Literal["independent", "blocked", "random", "file"] = _parameter(
        "validation windows: independent, from separate realizations; blocked, from the training "
        "realization's end after a gap of a window; random, from its windows at random; file, from the data file"
    )
    validation_fraction: Number = _parameter("share of windows for validation, split random or blocked", gt=0, lt=1)
    split_seed: Seed = _parameter("seed of the permutation, split random")
    train_noise_seed: Seed = _parameter("noise seed of the training realization, noise fixed")
    test_noise_seed: Seed = _parameter("noise seed of the test realization")
    holdout_noise_seed: Seed = _parameter("noise seed of the holdout realization")
    validation_noise_seed: Seed = _parameter("first noise seed of the validation realizations, split independent")
    validation_realizations: Count = _parameter("number of validation realizations, split independent", le=1000)
    validation_windows: Count | None = _parameter(
        "validation windows, spread evenly over their realizations, split independent; null: all"
    )
    test_windows: Count | None = _parameter("test windows, spread evenly over their realization; null: all")
    allow_shared_realizations: bool = _parameter("allow one realization for two purposes: a leak")
    data_file: str | None = _parameter(
        "a .npz file of windows in place of generated signals, or null", path=True, everyday=True
    )
    augment_noise_std: NonNegative = _parameter(
        "standard deviation of Gaussian noise added to each training mixture, drawn anew for each window "
        "and epoch, noise fixed or a data file; 0: none"
    )
    augment_gain_db: NonNegative = _parameter(
        "largest random gain of mixture and target, dB: uniform between minus and plus this, drawn anew "
        "for each training window and epoch, noise fixed or a data file; 0: none",
        le=60,
    )


class RecordingParams(_Section):
    """Recordings, with ``phase_distribution=uniform``."""

    recording_length: Count = _parameter("samples of a training recording, with phase_distribution=uniform")
    chunk_length: Count = _parameter(
        "samples of a training step; the state is carried from chunk to chunk, and gradients end at its start"
    )
    burn_in: CountOrZero = _parameter("samples at a training recording's start that have no part in the loss")
    recordings_per_epoch: Count = _parameter("training recordings of an epoch, drawn anew", le=10**6)
    validation_recordings: Count = _parameter("validation recordings, and as many of the holdout", le=10**5)
    test_recordings: Count = _parameter("test recordings", le=10**5)
    loss_weighting: Literal["none", "inverse_sqrt_limit", "inverse_limit"] = _parameter(
        "weight of each sample in the loss: inverse_limit, one over the least expected squared error after as many "
        "samples; inverse_sqrt_limit, one over its square root, so that early samples count more"
    )


class ModelParams(_Section):
    """The network's architecture."""

    cell: Literal["lstm", "gru"] = _parameter("recurrent cell", everyday=True)
    hidden_size: Count = _parameter("features of the hidden state", le=65536, everyday=True)
    num_layers: Count = _parameter("stacked recurrent layers", le=100)
    dropout: NonNegative = _parameter("dropout between the layers and before the output", lt=1)
    bidirectional: bool = _parameter("also run backwards from the window's end; not causal")


class TrainingParams(_Section):
    """Training: initial weights, device, optimization and checkpoints."""

    start_from: str | None = _parameter("run id or models:/NAME/VERSION of the initial weights; null: drawn from seed")
    chrono_t_max: Positive | None = _parameter(
        "chrono initialization: longest memory of a hidden feature at the start of training, samples; memories are "
        "log-uniform from 1 sample to this; null: PyTorch's biases, which keep a memory of about 2 samples",
        ge=1,
    )
    seed: Seed = _parameter(
        "seed of weights, windows and their order, dropout, fresh noise, augmentation, posterior means", everyday=True
    )
    device: Literal["auto", "cpu", "cuda"] = _parameter("device; auto: CUDA if available, else the CPU")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _parameter(
        "precision of training; auto: bf16 on CPUs with instructions for it, else fp32"
    )
    deterministic: bool = _parameter("use only deterministic algorithms")
    threads: CountOrZero = _parameter("CPU threads; 0: PyTorch's default", le=4096, everyday=True)
    epochs: Count = _parameter("maximum number of epochs", everyday=True)
    windows_per_epoch: Count | None = _parameter(
        "training windows of an epoch, drawn at random with replacement; null: each window once"
    )
    batch_size: Count = _parameter("windows of a training step", everyday=True)
    optimizer: Literal["muon", "adam"] = _parameter(
        "muon: Muon for the matrices between hidden features, Adam for the rest; adam: Adam for all"
    )
    learning_rate: Positive = _parameter("peak learning rate", everyday=True)
    weight_decay: NonNegative = _parameter("L2 penalty of Adam; Muon's is decoupled")
    loss: Literal["mse", "mae", "huber", "snr"] = _parameter("training loss")
    targets: Literal["posterior_mean", "clean"] = _parameter(
        "training target: clean, the clean component; posterior_mean, its mean over segments of the "
        "signal, weighted by their likelihood given the window, with noise fresh and loss mse"
    )
    gradient_clip_norm: NonNegative = _parameter("maximum norm of the gradient; 0: no clipping")
    scheduler: Literal["cosine", "plateau"] = _parameter(
        "learning rate: cosine, a warm-up, then half a cosine to zero over all epochs; plateau, reduced "
        "when the validation loss stops improving"
    )
    warmup_fraction: Number = _parameter("share of all steps for the warm-up, scheduler cosine", ge=0, lt=1)
    scheduler_factor: Number = _parameter(
        "factor of the learning rate on a plateau, scheduler plateau; 1: none", gt=0, le=1
    )
    scheduler_patience: CountOrZero = _parameter(
        "validations without improvement before the learning rate is reduced, scheduler plateau"
    )
    early_stopping_patience: CountOrZero = _parameter("validations without improvement before training ends; 0: never")
    validate_every: Count = _parameter("epochs between validations")
    validation_average: Literal["samples", "batches"] = _parameter(
        "validation loss: mean over samples, or over batches of batch_size as in the original script, "
        "where a smaller last batch has more weight per window"
    )
    checkpoint_every: CountOrZero = _parameter("epochs between checkpoints; 0: none")
    checkpoint_minutes: NonNegative = _parameter("minutes between checkpoints within and between epochs; 0: none")
    checkpoints_kept: Count = _parameter("number of newest checkpoints kept in the run's folder")


class EvaluationParams(_Section):
    """Holdout evaluation during training."""

    holdout_every: CountOrZero = _parameter("epochs between holdout evaluations; 0: none")
    holdout_windows: Count = _parameter("windows of a holdout evaluation during training, spread evenly")


with warnings.catch_warnings():
    # `register` shadows an unused method of abc.ABCMeta.
    warnings.filterwarnings("ignore", message='Field name "register"', category=UserWarning)

    class TrackingParams(_Section):
        """Tracking: store, experiment, registration and folders."""

        tracking: Literal["online", "offline"] = _parameter(
            "online: log to the tracking store; offline: log to run_dir until `freqfilter sync` uploads it"
        )
        experiment: str = _parameter("MLflow experiment; under `mlflow run`: --experiment-name", min_length=1)
        register: bool = _parameter("register the best model as a new version")
        model_name: str = _parameter("name in the model registry, without / : @ ? #", min_length=1, everyday=True)
        system_metrics_interval: NonNegative = _parameter(
            "seconds between samples of MLflow's system metrics (CPU, memory, GPU); 0: none"
        )
        run_dir: str = _parameter("folder of the runs' working files", min_length=1, path=True)
        tensorboard_dir: str | None = _parameter("folder of TensorBoard's event files; null: none", path=True)


class Params(_Section):
    """All parameters of a run, in sections. Names are unique across sections."""

    signals: SignalParams
    data: DataParams
    recordings: RecordingParams
    model: ModelParams
    training: TrainingParams
    evaluation: EvaluationParams
    tracking: TrackingParams

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        data = self.data
        if self.of_recordings:
            self._fit_recordings()
        elif data.window_length > self.signals.n_samples:
            raise ValueError(
                f"window_length={data.window_length} is longer than n_samples={self.signals.n_samples}; lower it"
            )
        if (data.split == "file") != (data.data_file is not None):
            raise ValueError(f"split={data.split}: use split=file with data_file, another split without")
        if data.data_file is not None and (data.noise != "fixed" or self.evaluation.holdout_every):
            invalid = "noise=fresh" if data.noise != "fixed" else f"holdout_every={self.evaluation.holdout_every}"
            raise ValueError(f"{invalid}: not possible with data_file, which has no signal model; remove it")
        if data.split in ("random", "blocked") and data.noise == "fresh":
            raise ValueError(f"split={data.split} takes windows from one realization; add noise=fixed")
        for name in ("augment_noise_std", "augment_gain_db"):
            if data.noise == "fresh" and (value := getattr(data, name)):
                raise ValueError(
                    f"{name}={value:g} needs noise=fixed or a data_file: with noise=fresh each window has new noise "
                    "already, with the signal model's noise_std; remove it"
                )
        if self.training.targets == "posterior_mean" and (data.noise, self.training.loss) != ("fresh", "mse"):
            other = f"noise={data.noise}" if data.noise != "fresh" else f"loss={self.training.loss}"
            raise ValueError(f"targets=posterior_mean needs noise=fresh and loss=mse, not {other}; remove one")
        for (purpose, seeds), (other, more) in combinations(self.realizations().items(), 2):
            if (shared := set(seeds).intersection(more)) and not data.allow_shared_realizations:
                raise ValueError(
                    f"{purpose} and {other} share realization {min(shared)}, a leak; change one, "
                    "or add allow_shared_realizations=true"
                )
        return self

    @property
    def of_recordings(self) -> bool:
        """Whether the data are recordings of random signals, and not windows."""
        return self.signals.phase_distribution == "uniform"

    @property
    def loss_name(self) -> str:
        """The loss; that of recordings may be weighted by the inverse limit, and is then no mean squared error."""
        names = {"inverse_limit": " over the limit", "inverse_sqrt_limit": " over the square root of the limit"}
        return self.training.loss + (names.get(self.recordings.loss_weighting, "") if self.of_recordings else "")

    def _fit_recordings(self) -> None:
        """Check parameters that have another meaning, or none, with recordings of random signals."""
        random = "phase_distribution=uniform"
        for name, value, needed in (
            ("data_file", self.data.data_file, None),
            ("noise", self.data.noise, "fresh"),
            ("split", self.data.split, "independent"),
            ("bidirectional", self.model.bidirectional, False),
        ):
            if value != needed:
                reason = "carries a state forwards only" if name == "bidirectional" else "draws fresh recordings"
                raise ValueError(f"{name}={value}: {random} {reason}; remove one of the two")
        if self.recordings.burn_in >= self.recordings.recording_length:
            raise ValueError(
                f"burn_in={self.recordings.burn_in} leaves no sample of recording_length="
                f"{self.recordings.recording_length}; lower it"
            )
        if self.training.loss == "snr" and self.recordings.loss_weighting != "none":
            raise ValueError("loss=snr: a ratio cannot be weighted by the limit; add loss_weighting=none")
        if self.training.targets == "posterior_mean" and not self.signals.gaussian:
            raise ValueError(
                "targets=posterior_mean: not known for fixed amplitudes with uniform phases; use targets=clean"
            )

    def realizations(self) -> dict[str, range]:
        """Noise seeds, by purpose, of the realizations that this run generates."""
        data = self.data
        if data.data_file is not None:
            return {}
        seeds = {"test_noise_seed": range(data.test_noise_seed, data.test_noise_seed + 1)}
        if data.noise == "fixed":
            seeds["train_noise_seed"] = range(data.train_noise_seed, data.train_noise_seed + 1)
        if data.split == "independent":
            first = data.validation_noise_seed
            seeds["validation_noise_seed"] = range(first, first + data.validation_realizations)
        elif data.split == "random":
            seeds["split=random"] = seeds["train_noise_seed"]
        if self.evaluation.holdout_every:
            seeds["holdout_noise_seed"] = range(data.holdout_noise_seed, data.holdout_noise_seed + 1)
        return seeds

    def with_tracking(self, **where: str) -> Self:
        """Copy the parameters with changed tracking parameters."""
        return self.model_copy(update={"tracking": self.tracking.model_copy(update=where)})

    def with_start_from(self, uri: str) -> Self:
        """Copy the parameters with an immutable URI of the initial weights in place of an alias."""
        return self.model_copy(update={"training": self.training.model_copy(update={"start_from": uri})})

    def flat(self, sections: Collection[str] | None = None) -> dict[str, Any]:
        """Values by name, of all sections or of some."""
        dumped = self.model_dump(include=set(sections) if sections else None)
        return {name: value for section in dumped.values() for name, value in section.items()}

    def canonical(self, sections: Collection[str] | None = None) -> dict[str, str]:
        """Canonical text of each parameter, for comparisons of runs: text unchanged, other values as JSON."""
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.flat(sections).items()}

    def digest(self) -> str:
        """SHA-256 of all parameters outside the section ``tracking``, which changes no result."""
        values = self.canonical(set(type(self).model_fields) - {"tracking"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """YAML of the resolved parameters; as ``recipe`` it repeats the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# A task is the signal model or the data file, the window length, and whether the whole window is used.
TASK = (*SignalParams.model_fields, "window_length", "data_file", "bidirectional")


def task_differences(params: Params, other: Params) -> list[str]:
    """Task parameters in which two filters differ, such as ``window_length=100 and not 50``."""
    task, other_task = params.flat(), other.flat()
    return [f"{name}={task[name]} and not {other_task[name]}" for name in TASK if task[name] != other_task[name]]


def _bound(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Bounds:
    """Acceptance criteria that a user can set."""

    max_mse_ratio: float = _bound(1.05, "largest ratio of its MSE to the limit")
    max_mse_ratio_per_frequency: float = _bound(1.10, "the same for each component")
    margin: float = _bound(
        0.0, "share of the champion's MSE by which it may be worse, for example if it is faster; 0: it must be better"
    )
    max_latency_ms: float = _bound(50.0, "largest latency for one window on one thread, milliseconds")
    max_size_mb: float = _bound(20.0, "largest size of its files, MB")
    allow_unknown_training: bool = _bound(
        False, "accept a version that was registered without the record of its training, hence of its leak alarms"
    )
