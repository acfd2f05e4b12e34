from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from freqfilter.config import resolve
from freqfilter.data.splits import Splits
from freqfilter.data.windows import TensorWindows
from freqfilter.evaluation.baselines import zero
from freqfilter.evaluation.metrics import compare, frequency_name, score
from freqfilter.plots.training import training_loss
from freqfilter.training.reports import EpochReport

CPU = torch.device("cpu")


def noisy_windows(n_windows: int = 3000) -> tuple[TensorWindows, np.ndarray]:
    random = np.random.default_rng(1)
    component = random.integers(3, size=n_windows)
    inputs = np.zeros((n_windows, 7, 4), dtype=np.float32)
    inputs[..., 0] = random.normal(size=(n_windows, 7))
    inputs[np.arange(n_windows), :, 1 + component] = 1
    targets = (inputs[..., :1] * 0.5 + random.normal(0.3, 1, (n_windows, 7, 1))).astype(np.float32)
    return TensorWindows(torch.from_numpy(inputs), torch.from_numpy(targets)), component


def test_scores_are_those_of_scikit_learn_and_scipy() -> None:
    windows, component = noisy_windows()
    table = score(lambda inputs: inputs[..., :1], windows, frequencies_hz=[1, 2.5, 3], device=CPU)
    truth, estimate = windows.targets.numpy()[..., 0], windows.inputs.numpy()[..., 0]
    assert list(table.index) == ["all", "1hz", "2.5hz", "3hz"]
    for name, chosen in zip(table.index, [component >= 0, component == 0, component == 1, component == 2], strict=True):
        t, e = truth[chosen].ravel().astype(float), estimate[chosen].ravel().astype(float)
        expected = [
            sk.mean_squared_error(t, e), sk.root_mean_squared_error(t, e), sk.mean_absolute_error(t, e),
            sk.r2_score(t, e), np.corrcoef(t, e)[0, 1], 10 * np.log10(np.mean(t**2) / np.mean((t - e) ** 2)),
        ]  # fmt: skip
        np.testing.assert_allclose(table.loc[name].to_numpy(), expected, rtol=1e-6)


def test_predicting_zero_scores_the_power_of_a_unit_sinusoid() -> None:
    windows = Splits.from_params(resolve()).test
    table = score(zero, windows, frequencies_hz=[1, 3, 5, 7], device=CPU)
    np.testing.assert_allclose(table["mse"], 0.5, atol=0.01)
    np.testing.assert_allclose(table["r2"], 0, atol=0.01)
    assert table["pearson_r"].isna().all()
    np.testing.assert_allclose(table["sdr_db"], 0, atol=1e-9)


def test_the_truth_scores_perfectly() -> None:
    windows, _ = noisy_windows(50)
    table = score(lambda _: windows.targets, windows, frequencies_hz=[1, 2, 3], device=CPU)
    assert (table["mse"] == 0).all()
    np.testing.assert_allclose(table[["r2", "pearson_r"]], 1)
    assert (table["sdr_db"] == np.inf).all()


def test_a_component_that_does_not_occur_has_no_row() -> None:
    windows = TensorWindows(torch.tensor([[[1.0, 1, 0]]]), torch.tensor([[[2.0]]]))
    table = compare({"zero": zero}, windows, frequencies_hz=[4, 8], device=CPU).table
    assert list(table.index) == [("zero", "all"), ("zero", "4hz")]
    assert table["mse"].tolist() == [4, 4]


def test_errors_over_the_window_and_over_blocks_add_up_to_the_whole() -> None:
    params = resolve({"n_samples": "500", "duration_s": "5", "window_length": "20"})
    windows = Splits.from_params(params).test  # a hundred samples are a second
    frequencies_hz = params.signals.frequencies_hz
    found = compare({"zero": zero}, windows, frequencies_hz=frequencies_hz, device=CPU)
    _, targets = windows.batch(torch.arange(len(windows)))
    squared = targets[..., 0].double().square()
    np.testing.assert_allclose(found.per_step.loc["zero"], squared.mean(dim=0))
    assert list(found.per_step.columns) == list(range(1, 21))
    assert found.per_block is not None
    # 481 starts in four blocks of at least a hundred, as equal as can be.
    of_starts = squared.view(481, 4, 20).mean(dim=(1, 2))
    expected = [of_starts[:121].mean(), of_starts[121:241].mean(), of_starts[241:361].mean(), of_starts[361:].mean()]
    np.testing.assert_allclose(found.per_block.loc["zero"], expected)
    assert float(found.table["mse"]["zero", "all"]) == pytest.approx(float(squared.mean()))


def test_windows_of_a_file_have_no_blocks() -> None:
    windows, _ = noisy_windows(10)
    assert compare({"zero": zero}, windows, frequencies_hz=[1, 2, 3], device=CPU).per_block is None


def test_different_frequencies_have_different_names() -> None:
    frequencies = [1.0, 1.5, 0.1, 1e-7, 100000.0, 123456.789, 1.0000001]
    assert len({frequency_name(f) for f in frequencies}) == len(frequencies)


def history(*losses: float) -> list[EpochReport]:
    return [
        EpochReport(epoch, loss, 1.0, 1e-3, 1.0, val_loss=loss * 0.9, val_mse=loss, holdout_mse=loss + 0.1)
        for epoch, loss in enumerate(losses, start=1)
    ]


def test_the_limit_is_a_line_in_the_loss_curve_where_the_loss_is_a_squared_error() -> None:
    def lines(loss: str) -> dict[str, list[float]]:
        axes = training_loss(history(0.5, 0.3), loss=loss, val_limit_mse=0.2).axes[0]
        return {str(line.get_label()): [float(y) for y in np.asarray(line.get_ydata())] for line in axes.get_lines()}

    assert lines("mse")["limit on validation: 0.2000"] == [0.2, 0.2]
    assert not any("limit" in label for label in lines("mae"))


@pytest.mark.parametrize(("losses", "scale"), [((0.5, 0.3, 0.2), "log"), ((0.5, -3.0, -4.0), "linear")])
def test_the_loss_curve_is_as_documented(losses: tuple[float, ...], scale: str) -> None:
    figure = training_loss(history(*losses), best_epoch=3)
    axes = figure.axes[0]
    assert tuple(figure.get_size_inches()) == (12, 6)
    assert axes.get_yscale() == scale
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn["training"] == list(losses)
    assert drawn["validation"] == list(losses)  # the mean over samples, as the limit is
    assert "epoch" in axes.get_xlabel()
    lines = training_loss(history(*losses), loss="mae").axes[0].get_lines()
    other_loss = {line.get_label(): list(line.get_ydata()) for line in lines}
    assert other_loss["validation"] == [loss * 0.9 for loss in losses]


def test_the_loss_curve_leaves_out_epochs_that_were_not_validated() -> None:
    reports = [EpochReport(1, 0.5, 1.0, 1e-3, 1.0), *history(0.4, 0.3)[1:]]
    lines = training_loss(reports).axes[0].get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[1, 2], [2], [2]]
