from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import closing

import pytest
import torch
from torch import Tensor

from freqfilter.config import Params, resolve
from freqfilter.data.signal_model import random_stream
from freqfilter.data.splits import Splits
from freqfilter.data.windows import TensorWindows, TrainingBatch
from freqfilter.errors import TrainingError, UserError
from freqfilter.training.device import Accelerator
from freqfilter.training.loop import train, training_step, validate
from freqfilter.training.reports import EpochReport, StepReport
from freqfilter.training.state import TrainingState
from tests.conftest import COARSEST, SMALL, fresh_state

Report = StepReport | EpochReport
EVERYTHING_RANDOM = {"dropout": "0.3", "noise": "fresh", "precision": COARSEST}


def small(**overrides: str) -> Params:
    return resolve(SMALL | overrides)


def run(
    params: Params,
    state: TrainingState | None = None,
    *,
    stop_after: float = math.inf,
    at_each: Callable[[], object] = lambda: None,
) -> TrainingState:
    state, splits = state or fresh_state(params), Splits.from_params(params)
    steps = train(
        state,
        training_windows=splits.epoch,
        validation=splits.validation,
        holdout=splits.holdout,
        holdout_every=max(params.evaluation.holdout_every, 1),
        params=params.training,
    )
    with closing(steps):
        for count, _ in enumerate(steps, start=1):
            at_each()
            if count >= stop_after:
                break
    return state


def figures(state: TrainingState) -> list[tuple[float | None, ...]]:
    return [(r.train_loss, r.gradient_norm, r.val_loss, r.val_mse, r.holdout_mse) for r in state.progress.history]


def same_weights(one: TrainingState, other: TrainingState) -> bool:
    pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "overrides", [{}, EVERYTHING_RANDOM, {"cell": "gru", "bidirectional": "true"}, {"optimizer": "muon"}]
)
def test_the_same_parameters_give_the_same_bits_and_another_seed_others(overrides: dict[str, str]) -> None:
    first, again = run(small(**overrides)), run(small(**overrides))
    assert figures(first) == figures(again)
    assert same_weights(first, again)
    assert figures(run(small(**overrides, seed="43")))[0] != figures(first)[0]


def test_training_and_the_global_generator_do_not_affect_each_other() -> None:
    params = small(**EVERYTHING_RANDOM)
    undisturbed = run(params)
    torch.manual_seed(1)
    disturbed = run(params, at_each=lambda: torch.randn(3))
    assert figures(disturbed) == figures(undisturbed)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    run(params)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_ends_with_the_weights_of_the_best_validation() -> None:
    params = small(learning_rate="0.5", epochs="6", scheduler_factor="1")
    state = run(params)
    losses = [report.val_loss for report in state.progress.history]
    best = min(losses, key=lambda loss: math.inf if loss is None else loss)
    assert losses[-1] != best
    assert losses[state.progress.best_epoch - 1] == best
    assert [report.epoch for report in state.progress.history if report.improved][-1] == state.progress.best_epoch
    assert validate(state, Splits.from_params(params).validation, params.training).loss == best


def test_a_loop_that_is_left_early_ends_with_the_best_weights() -> None:
    state = run(small(), stop_after=20)  # in the middle of the second epoch
    assert not state.network.training
    assert all(torch.equal(state.network.state_dict()[k], v) for k, v in state.best_weights.items())


def test_early_stopping_counts_validations_without_improvement() -> None:
    state = run(small(learning_rate="0.5", epochs="60", early_stopping_patience="2", validate_every="3"))
    validated = [report.epoch for report in state.progress.history if report.val_loss is not None]
    assert validated == list(range(3, len(state.progress.history) + 1, 3))
    assert state.progress.stopped_early
    assert len(state.progress.history) - state.progress.best_epoch == 2 * 3


def test_the_last_epoch_is_always_validated() -> None:
    state = run(small(validate_every="2", epochs="3"))
    assert [report.val_loss is None for report in state.progress.history] == [True, False, False]


@pytest.mark.parametrize("average", ["samples", "batches"])
def test_the_validation_loss_is_a_mean_over_samples_or_as_in_the_original_over_batches(average: str) -> None:
    params = small(batch_size="100", epochs="1", validation_average=average)
    state = run(params)
    windows = Splits.from_params(params).validation.to(state.accelerator.device)
    inputs, targets = windows.batch(torch.arange(len(windows), device=state.accelerator.device))
    with torch.inference_mode():
        errors = (state.network(inputs) - targets).square()
    of_batches = [float(batch.mean()) for batch in errors.split(100)]
    report = state.progress.history[0]
    assert len(windows) % 100 != 0
    by_average = {"batches": sum(of_batches) / len(of_batches), "samples": float(errors.mean())}
    assert by_average["batches"] != pytest.approx(by_average["samples"], rel=1e-5)
    assert report.val_loss == pytest.approx(by_average[average], rel=1e-5)
    assert report.val_mse == pytest.approx(by_average["samples"], rel=1e-5)
    assert state.progress.best_loss == report.val_loss


def test_each_epoch_takes_every_window_once_in_a_new_order() -> None:
    """Neighbouring windows, which share all samples but one, are seldom in the same batch."""
    params, taken = small(epochs="2", batch_size="16"), list[Tensor]()

    class Recorded(TensorWindows):
        def training_batch(self, positions: Tensor) -> TrainingBatch:
            taken.append(positions.cpu())
            return super().training_batch(positions)

    windows = Recorded(torch.randn(1000, 10, 5), torch.randn(1000, 10, 1))
    state = fresh_state(params)
    for _ in train(state, training_windows=lambda _: windows, validation=windows, params=params.training):
        pass
    first, second = torch.cat(taken).split(1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(second.sort().values, torch.arange(1000))
    for one, other in ((first, second), (first[:-1], first[1:])):
        correlation = float(torch.corrcoef(torch.stack([one, other]).double())[0, 1])
        assert correlation == pytest.approx(0, abs=4 / 1000**0.5)


def test_clipping_bounds_the_gradient_and_not_the_reported_norm() -> None:
    for clip, bounded in (("1e-6", True), ("0", False)):
        state = run(small(gradient_clip_norm=clip, epochs="1"))
        norm = torch.nn.utils.get_total_norm([p.grad for p in state.network.parameters() if p.grad is not None])
        assert (float(norm) <= 1.001e-6) is bounded
        assert state.progress.history[0].gradient_norm > 1e-3


@pytest.mark.parametrize("loss", ["mae", "huber", "snr"])
def test_every_loss_trains(loss: str) -> None:
    history = run(small(loss=loss, epochs="4", learning_rate="0.01")).progress.history
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].val_mse is not None


def test_an_easy_task_is_learned() -> None:
    """Two distant components without noise: the error is a fifth of that of predicting zero."""
    params = small(
        frequencies_hz="[3, 40]", noise_std="0", hidden_size="32", epochs="25", learning_rate="0.01", batch_size="64"
    )
    last = run(params).progress.history[-1]
    assert last.holdout_mse is not None
    assert last.holdout_mse < 0.1


def test_fixed_noise_is_memorized() -> None:
    """Fixed noise is fitted far below the error on new noise."""
    windows = TensorWindows(torch.randn(8, 10, 5), torch.randn(8, 10, 1))
    params = small(epochs="300", batch_size="8", learning_rate="0.02", validate_every="300", hidden_size="32")
    state = fresh_state(params)
    for _ in train(state, training_windows=lambda _: windows, validation=windows, params=params.training):
        pass
    assert state.progress.history[-1].train_loss < 0.1


@pytest.mark.parametrize(("nan_step", "good_after"), [(1, 0), (8, 0), (50, 0), (51, 0), (52, 50), (77, 50), (96, 50)])
def test_a_loss_that_is_not_finite_ends_training_with_its_batch_and_good_weights(
    nan_step: int, good_after: int
) -> None:
    params = small(batch_size="16", epochs="1", dropout="0.3")  # 96 steps
    state, splits = fresh_state(params), Splits.from_params(params)
    fresh = splits.epoch(1)
    windows = TensorWindows(*fresh.batch(torch.arange(len(fresh))))
    order = random_stream(params.training.seed, "order", 1).permutation(len(windows))
    windows.inputs[order[(nan_step - 1) * 16]] = math.nan
    with pytest.raises(TrainingError, match=f"not finite in epoch 1, batch {nan_step} of 96.*learning_rate=0.0002"):
        for _ in train(state, training_windows=lambda _: windows, validation=splits.validation, params=params.training):
            pass
    if good_after:
        steps = train(
            untouched := fresh_state(params),
            training_windows=splits.epoch,
            validation=splits.validation,
            params=params.training,
        )
        with closing(steps):
            for _ in range(good_after):
                next(steps)
            expected = copy.deepcopy(untouched.network.state_dict())
    else:
        expected = fresh_state(params).network.state_dict()
    assert all(torch.equal(state.good_weights[name], weight) for name, weight in expected.items())
    assert all(torch.isfinite(weight).all() for weight in state.network.parameters())


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ({"gradient_clip_norm": "0"}, "training loss is not finite in epoch 1, batch 2 of 12"),
        ({"batch_size": "100000"}, "validation loss is not finite in epoch 1"),
    ],
)
def test_a_learning_rate_that_is_far_too_high_ends_training(overrides: dict[str, str], where: str) -> None:
    params = small(learning_rate="1e30", **overrides)
    state = fresh_state(params)
    with pytest.raises(TrainingError, match=where) as ended:
        run(params, state)
    assert ended.value.diagnosis == "loss_not_finite"
    assert all(torch.isfinite(weight).all() for weight in state.network.parameters())
    state.network.load_state_dict(state.good_weights)
    assert math.isfinite(validate(state, Splits.from_params(params).validation, params.training).loss)


def test_a_slowly_rising_loss_in_decibels_is_a_plateau() -> None:
    state = fresh_state(small(loss="snr", scheduler_patience="0"))
    for step in range(4):
        state.cut_learning_rate_on_plateau(-5 + step * 1e-4)
    assert state.learning_rate < small().training.learning_rate


def test_a_plateau_cuts_the_rate_of_all_optimizers() -> None:
    state = fresh_state(small(optimizer="muon", scheduler_patience="0"))
    for _ in range(3):
        state.cut_learning_rate_on_plateau(1.0)
    rates = {group["lr"] for optimizer in state.optimizers for group in optimizer.param_groups}
    assert len(state.optimizers) == 2
    assert rates == {small().training.learning_rate / 4}


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
@pytest.mark.parametrize("gradient_clip_norm", ["0", "1"])
def test_a_gradient_that_overflows_in_half_precision_changes_no_weight(optimizer: str, gradient_clip_norm: str) -> None:
    params = small(optimizer=optimizer, gradient_clip_norm=gradient_clip_norm)
    state = fresh_state(params)
    state.scaler = torch.amp.GradScaler(state.accelerator.device.type)
    batch = (
        Splits.from_params(params)
        .train.to(state.accelerator.device)
        .training_batch(torch.arange(64, device=state.accelerator.device))
    )
    training_step(state, batch, params.training)
    before, scale = copy.deepcopy(state.network.state_dict()), state.scaler.get_scale()
    state.network.fc.bias.register_hook(lambda gradient: gradient * math.inf)
    n_finite = float(training_step(state, batch, params.training)[2])
    assert n_finite == 0
    assert all(torch.equal(weight, before[name]) for name, weight in state.network.state_dict().items())
    assert state.scaler.get_scale() < scale


def test_a_step_uses_its_targets_and_reports_the_loss_to_the_clean_component() -> None:
    params = small()
    state, splits = fresh_state(params), Splits.from_params(params)
    inputs, _, clean, *_ = splits.train.to(state.accelerator.device).training_batch(
        torch.arange(64, device=state.accelerator.device)
    )
    with torch.no_grad():
        targets = state.network(inputs)
        loss = float((targets - clean).square().mean())
    before = copy.deepcopy(state.network.state_dict())
    reported = training_step(state, TrainingBatch(inputs, targets, clean), params.training)
    assert float(reported[0]) == pytest.approx(loss)
    for name, weight in state.network.state_dict().items():
        torch.testing.assert_close(weight, before[name], atol=1e-4, rtol=0)


def test_an_unavailable_device_or_precision_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device=cuda: PyTorch finds no CUDA device"):
            Accelerator.open(small(device="cuda").training)
    try:
        accelerator = Accelerator.open(small(precision="fp16", device="cpu").training)
    except UserError as error:
        assert "use fp32" in str(error)
    else:
        assert accelerator.dtype is torch.float16


@pytest.mark.parametrize(
    ("instructions", "reason", "precision"), [(True, None, "bf16"), (True, "no", "fp32"), (False, None, "fp32")]
)
def test_auto_is_bf16_on_a_cpu_with_instructions_for_it(
    instructions: bool, reason: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freqfilter.training.device._has_bf16_instructions", lambda: instructions)
    monkeypatch.setattr(Accelerator, "_unsupported_reason", lambda accelerator: reason if accelerator.dtype else None)
    accelerator = Accelerator.open(small(precision="auto", device="cpu").training)
    assert accelerator.precision == precision
    assert accelerator.describe().endswith(precision)
