"""Figures show their data, with labelled axes, for every signal model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from freqfilter.config import Params, resolve
from freqfilter.data.posterior import MMSEEstimator
from freqfilter.data.signal_model import SignalModel
from freqfilter.data.splits import Splits
from freqfilter.evaluation.baselines import zero
from freqfilter.evaluation.metrics import compare
from freqfilter.plots import catalog, data, evaluation
from freqfilter.plots.evaluation import WindowEstimates, segment_estimates, window_estimates
from freqfilter.plots.limit import decision, posterior
from freqfilter.plots.training import Curves, comparison, learning_rate_range, side_by_side, training_loss
from freqfilter.training.reports import EpochReport
from tests.conftest import SMALL

CPU = torch.device("cpu")


def half(inputs: Tensor) -> Tensor:
    """Estimator that returns half of the mixture."""
    return inputs[..., :1] / 2


def data_figures(params: Params) -> dict[str, Figure]:
    windows = Splits.from_params(params).test
    return {name: draw() for name, draw in catalog.data_figures(params.signals, windows)}  # type: ignore[arg-type]


def evaluation_figures(params: Params) -> dict[str, Figure]:
    splits, frequencies_hz = Splits.from_params(params), params.signals.frequencies_hz
    compared = compare({"model": half, "zero": zero}, splits.test, frequencies_hz=frequencies_hz, device=CPU)
    figures = catalog.evaluation_figures(
        half,
        splits.test,
        splits.first_windows,
        compared,
        frequencies_hz=frequencies_hz,
        sample_rate_hz=params.signals.sample_rate_hz,
        device=CPU,
    )
    return {name: draw() for name, draw in figures}


@pytest.mark.parametrize(
    ("overrides", "has_other_panels"),
    [
        ({}, True),
        ({"frequencies_hz": "12.5"}, True),
        ({"frequencies_hz": str(list(range(1, 13)))}, True),
        ({"window_length": "1"}, False),
        ({"window_length": "400"}, False),
        ({"noise_std": "0"}, False),
        ({"n_samples": "20", "duration_s": "1", "window_length": "2"}, False),
        ({"n_samples": "2", "duration_s": "0.02", "window_length": "1"}, False),
    ],
)
def test_every_signal_model_can_be_drawn_with_labelled_axes(
    overrides: dict[str, str], has_other_panels: bool, tmp_path: Path
) -> None:
    params = resolve(SMALL | overrides)
    figures = data_figures(params) | evaluation_figures(params)
    numbers = [Path(name).name[:2] for name in figures]
    assert numbers == ["01", "02", "03", "04", "05", "06", "08", "09", "10", "11", "12", "13", "14"]
    for name, figure in figures.items():
        if not has_other_panels:
            figure.set_layout_engine("none")  # laid out as the first one; this takes as long as drawing
        figure.savefig(tmp_path / Path(name).name, dpi=30)
        drawn = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert drawn
        for axes in drawn:
            # Panels above one another share the time axis of the last one.
            column = axes.get_shared_x_axes().get_siblings(axes)
            assert any(other.get_xlabel() for other in column), name
            rows = [label.get_text() for label in axes.get_yticklabels()]
            assert axes.get_ylabel() or "mixture" in rows or "target" in rows, name
    assert len(list(tmp_path.iterdir())) == 13


def test_a_spectrum_has_its_peaks_at_the_components_with_a_quarter_of_their_amplitude() -> None:
    params = resolve({"noise_std": "0.01", "amplitudes": "[1, 2, 1, 0.5]"})
    windows = Splits.from_params(params).test
    mixture = windows.tensors()[0][0].double().numpy()
    grid_hz, amplitudes = data.amplitude_spectrum(mixture, params.signals.sample_rate_hz)
    for frequency_hz, amplitude in zip((1, 3, 5, 7), (1, 2, 1, 0.5), strict=True):
        near = np.abs(grid_hz - frequency_hz) < 0.5
        assert amplitudes[near].max() == pytest.approx(amplitude / 4, rel=0.02)
        assert abs(grid_hz[near][amplitudes[near].argmax()] - frequency_hz) < 0.06


def test_a_segment_has_the_clean_signal_and_the_estimates_of_its_windows() -> None:
    params = resolve(SMALL)
    windows = Splits.from_params(params).test
    found = segment_estimates(
        half,
        windows,  # type: ignore[arg-type]
        frequencies_hz=params.signals.frequencies_hz,
        sample_rate_hz=params.signals.sample_rate_hz,
        device=CPU,
    )
    mixtures, components = windows.tensors()
    assert found.targets.shape == (4, 400)
    np.testing.assert_array_equal(found.targets, components)
    np.testing.assert_array_equal(found.estimates, (mixtures[0] / 2).expand(4, -1))


def test_window_estimates_belong_to_their_windows() -> None:
    params = resolve(SMALL)
    found = window_estimates(
        half, Splits.from_params(params).test, frequencies_hz=params.signals.frequencies_hz, device=CPU
    )
    assert found.mixture.shape == (381 * 4, 20)
    np.testing.assert_array_equal(found.estimate, found.mixture / 2)
    assert found.component[:5].tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("n_samples", ["4048", "4049"])
def test_every_component_is_among_the_windows_that_are_drawn(n_samples: str) -> None:
    """Also if every n-th window has the same component."""
    params = resolve({"n_samples": n_samples, "duration_s": "4"})
    found = window_estimates(
        half, Splits.from_params(params).test, frequencies_hz=params.signals.frequencies_hz, device=CPU
    )
    counts = np.bincount(found.component)
    assert len(counts) == 4
    assert counts.min() > 700


def estimates_with(error: np.ndarray) -> WindowEstimates:
    flat = np.zeros_like(error, dtype=np.float32)
    component = np.zeros(len(error), dtype=np.int64)
    return WindowEstimates(flat, component, flat, error.astype(np.float32), [5.0])


def test_the_window_shown_is_the_one_of_median_error() -> None:
    error = np.repeat(np.array([5.0, 1.0, 3.0, 9.0, 2.0])[:, None], 4, axis=1)
    axes = evaluation.prediction(estimates_with(error)).axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(drawn["estimate"]) == [3, 3, 3, 3]
    assert "MSE 9" in axes.get_title()


def test_normal_errors_lie_on_the_line_of_the_q_q_plot_and_others_do_not() -> None:
    random = np.random.default_rng(1)

    def distance(error: np.ndarray) -> float:
        axes = evaluation.errors(estimates_with(error)).axes[1]
        points, line = (np.asarray(found.get_ydata()) for found in axes.get_lines())
        return float(np.abs(points - line).max() / error.std())

    assert distance(random.normal(0.3, 2, (500, 40))) < 0.15
    assert distance(random.uniform(-1, 1, (500, 40))) > 0.5


def test_bars_show_every_estimator_and_component() -> None:
    params = resolve(SMALL)
    windows, frequencies_hz = Splits.from_params(params).test, params.signals.frequencies_hz
    scores = compare({"model": half, "zero": zero}, windows, frequencies_hz=frequencies_hz, device=CPU).table
    axes = evaluation.mse_of_components(scores).axes[0]
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert heights == pytest.approx(scores["mse"].tolist())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all", "1 Hz", "3 Hz", "5 Hz", "7 Hz"]


def test_an_error_that_is_off_the_scale_is_written_out() -> None:
    params = resolve(SMALL)
    windows, frequencies_hz = Splits.from_params(params).test, params.signals.frequencies_hz
    wild = {"model": half, "zero": zero, "wild": lambda inputs: 1e4 * inputs[..., :1]}
    compared = compare(wild, windows, frequencies_hz=frequencies_hz, device=CPU)
    axes = evaluation.mse_of_components(compared.table).axes[0]
    assert axes.get_ylim()[1] < 10
    worst = compared.table["mse"]["wild", "all"]
    assert f"{worst:.2g}" in [text.get_text() for text in axes.texts]
    over_window = evaluation.mse_over_window(compared.per_step).axes[0]
    labels = [str(line.get_label()) for line in over_window.get_lines()]
    assert labels[:2] == ["model", "zero"]
    assert labels[2].startswith("wild: above ")


def test_a_comparison_marks_what_was_measured() -> None:
    table = pd.DataFrame({"val_mse": [0.3, 0.2], "holdout_mse": [None, None]}, index=["base", "cell=gru"])
    axes = comparison(table).axes[0]
    assert [line.get_label() for line in axes.get_lines()] == ["validation"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["base", "cell=gru"]


@pytest.mark.parametrize(("loss", "values", "scale"), [("mse", (0.4, 0.2), "log"), ("snr", (-3.0, -7.0), "linear")])
def test_the_loss_axis_is_logarithmic_unless_a_loss_can_be_negative(
    loss: str, values: tuple[float, float], scale: str
) -> None:
    history = [EpochReport(epoch, value, 1.0, 1e-3, 1.0, val_loss=value) for epoch, value in enumerate(values, start=1)]
    assert training_loss(history, loss=loss).axes[0].get_yscale() == scale


def test_a_range_test_marks_suggestion_and_present_rate() -> None:
    rates = np.geomspace(1e-5, 1, 50)
    figure = learning_rate_range(rates, rates, rates, suggested=0.1, current=0.02, loss="snr")
    labels = [str(line.get_label()) for line in figure.axes[0].get_lines()]
    assert any("suggestion: 0.1" in label for label in labels)
    assert any("now: 0.02" in label for label in labels)
    assert "dB" in figure.axes[0].get_ylabel()


def test_trainings_side_by_side_show_curves_limits_and_ratios() -> None:
    trainings = {
        "base": Curves(pd.Series({1: 0.4, 2: 0.3, 3: 0.2}), limit_mse=0.05, over_limit=(1.2, 1.1, 1.3)),
        "cell=gru": Curves(pd.Series({1: 0.5, 3: 0.1}), pd.Series({1: 0.6, 2: 0.7}), limit_mse=0.05),
    }
    losses, distances = side_by_side(trainings).axes
    drawn = {str(line.get_label()): line for line in losses.get_lines()}
    assert list(np.asarray(drawn["cell=gru"].get_xdata())) == [1, 3]
    assert list(np.asarray(drawn["cell=gru"].get_ydata())) == [0.5, 0.1]
    assert {"base", "holdout: new data, not used for selection", "limit on validation: 0.0500"} <= set(drawn)
    assert [label.get_text() for label in distances.get_yticklabels()] == ["base"]
    assert len(side_by_side({"base": Curves(pd.Series({1: 0.4}))}).axes) == 1


@pytest.mark.parametrize(
    "overrides", [{}, {"window_length": "1"}, {"noise_std": "0"}, {"frequencies_hz": str(list(range(1, 13)))}]
)
def test_a_posterior_is_drawn_with_its_standard_deviation(overrides: dict[str, str], tmp_path: Path) -> None:
    params = resolve(SMALL | overrides)
    windows, frequencies_hz = Splits.from_params(params).test, params.signals.frequencies_hz
    inputs, targets = windows.batch(torch.arange(windows.n_components))
    limit = MMSEEstimator.from_model(SignalModel.from_params(params.signals), n_samples=windows.n_samples)
    known = limit.posterior(inputs[:1, :, 0])
    mean, variance = known.causal[0].numpy(), known.causal_variance[0].numpy()
    figure = posterior(inputs[0, :, 0].numpy(), targets[..., 0].numpy(), mean, variance, frequencies_hz=frequencies_hz)
    figure.savefig(tmp_path / "posterior.png", dpi=30)
    assert [axes.get_title() for axes in figure.axes] == [f"{f:g} Hz" for f in frequencies_hz[:8]]
    for number, axes in enumerate(figure.axes):
        drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.get_lines()}
        np.testing.assert_array_equal(drawn["posterior mean"], mean[number])
        np.testing.assert_array_equal(drawn["target"], targets[number, :, 0])
        edge = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert edge.max() == pytest.approx((mean[number] + np.sqrt(variance[number])).max(), abs=1e-6)


def test_a_decision_hides_no_bar_behind_its_legend() -> None:
    errors = {side: pd.DataFrame({"all": [0.2, 0.3], "2hz": [0.2, 0.2]}) for side in ("candidate", "champion", "limit")}
    figure = decision(errors, None)
    bars = figure.axes[0]
    assert bars.get_legend() is None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(errors)
    assert [label.get_text() for label in bars.get_xticklabels()] == ["all", "2 Hz"]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([0.25, 0.2] * 3)  # type: ignore[attr-defined]
