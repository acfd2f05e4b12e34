"""MLflow's UI in a real browser: runs, curves, pictures, comparison and versions.

With ``FREQFILTER_SCREENSHOTS`` they run on the store of the environment, on six trainings in full size, and take the
pictures of docs/how-to/mlflow_ui.md (``make screenshots``).
Without Chromium they are skipped; with ``FREQFILTER_REQUIRE_BROWSER`` they fail.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from freqfilter.config import resolve
from freqfilter.tracked_names import (
    COMPARED,
    HOLDOUT_MSE,
    SYSTEM,
    TEST_MSE,
    TEST_MSE_OVER_LIMIT,
    TRAIN_LOSS,
    VAL_LIMIT_MSE,
    VAL_MSE,
    VAL_MSE_OVER_LIMIT,
)
from tests.conftest import ROOT, fork_model_workers, free_port, wait_until_it_answers, work_in
from tests.ui import six_runs
from tests.ui.six_runs import version

SCREENSHOTS = "FREQFILTER_SCREENSHOTS" in os.environ
REQUIRED = SCREENSHOTS or "FREQFILTER_REQUIRE_BROWSER" in os.environ  # as in .ci/run
CHROMIUM = shutil.which("chromium")
NO_BROWSER = "browser tests: Chromium is not installed (apt-get install chromium)"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM or REQUIRED), reason=NO_BROWSER)]

TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS)

PICTURES = ROOT / "docs" / "pictures" / "ui"
CUT = {
    "hidden_size": "16",
    "n_samples": "1000",
    "window_length": "20",
    "windows_per_epoch": "8000",
    "batch_size": "64",
    "epochs": "2",
    "holdout_windows": "200",
    "threads": "1",
}
LENIENT = {"max_mse_ratio": "4", "max_mse_ratio_per_frequency": "6"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:
    """Tracking URI of a store with six trainings and two decisions."""
    if SCREENSHOTS:
        yield mlflow.get_tracking_uri()
        return
    folder = tmp_path_factory.mktemp("six_runs")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, folder / "mlflow.db", patch, cache=empty_store.parent / "cache")
        fork_model_workers(patch)
        for recipe in ("default", "original"):
            (folder / f"{recipe}.yaml").write_text(resolve(CUT, recipe=recipe).to_yaml())
        six_runs.make(LENIENT, files=".yaml")
        yield os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture(scope="module")
def runs(store: str) -> dict[str, Run]:
    """The trainings by their keys in ``TRAININGS``."""
    found = six_runs.known()
    assert set(found) == set(six_runs.TRAININGS)
    return found


@pytest.fixture(scope="module")
def champion(runs: dict[str, Run]) -> Run:
    """The training of the champion."""
    return runs[six_runs.champion()]


@pytest.fixture(scope="module")
def url(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `mlflow ui`, started as by `make ui`."""
    port, log = free_port(), tmp_path_factory.mktemp("ui") / "log"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, "--workers", "1", "--backend-store-uri", store],
            env=environment, stdout=written, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "the tests of MLflow's UI need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def context(browser: Browser, url: str) -> Iterator[BrowserContext]:
    """One browser context for all tests, so that scripts are loaded and first-visit dialogs closed once."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, device_scale_factor=1)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto(url)
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
    page.get_by_label("Close alert").first.click()
    page.get_by_text("Model training").first.click()
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, url: str) -> Iterator[Page]:
    """MLflow's first page; the test fails on errors of its scripts."""
    page = context.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(url)
    yield page
    page.close()
    assert broken == []


def keep(page: Page, name: str) -> None:
    """Take a screenshot for the documentation, if requested."""
    if SCREENSHOTS:
        page.wait_for_timeout(1500)  # charts and menus move for a moment
        PICTURES.mkdir(parents=True, exist_ok=True)
        own = page.get_by_text("sqlite:///")  # the store's path on this machine
        page.screenshot(path=PICTURES / f"{name}.png", mask=[own], mask_color="#e8e8e8")


def open_view(page: Page, name: str) -> None:
    """Open a saved view of the experiment's runs, from the first page."""
    page.get_by_role("link", name="freqfilter", exact=True).first.click()
    page.locator("[data-testid=saved-views-trigger]").click()
    page.get_by_role("menuitem", name=name).click()
    expect(page.get_by_text("You're viewing a shared view")).to_be_visible()


def show_charts(page: Page) -> None:
    page.locator("label:has(input[value='CHART'])").click()


def scored(runs: dict[str, Run]) -> list[Run]:
    """Runs that have finished."""
    return [run for name, run in runs.items() if name != "failed"]


def row(page: Page, run: Run) -> Locator:
    """The part of a run's row that has its name."""
    return page.locator("[role=row][row-index]").filter(has=page.locator(f"a[href*='{run.info.run_id}']")).first


def chart(page: Page, title: str) -> Locator:
    """The card of a chart."""
    cards = page.locator("[data-testid='experiment-view-compare-runs-card']")
    return cards.filter(has=page.locator(f"h4[title='{title}']"))


def column(page: Page, name: str) -> list[str]:
    """Texts of a column, from top to bottom."""
    cells = page.locator(f"[role=row][row-index] [col-id*='{name}']")
    expect(cells.first).to_be_visible()
    found = {
        int(cell.locator("xpath=ancestor::*[@row-index]").first.get_attribute("row-index") or 0): cell.inner_text()
        for cell in cells.all()
    }
    return [found[index] for index in sorted(found)]


def loaded(picture: Locator) -> bool:
    """Whether a picture is visible and loaded."""
    expect(picture).to_be_visible()
    return bool(picture.evaluate("image => image.complete && image.naturalWidth > 0"))


def test_runs_are_sorted_by_their_ratio_to_the_limit(page: Page, runs: dict[str, Run]) -> None:
    open_view(page, "Trainings")
    expect(row(page, runs["failed"])).to_be_visible()
    over_limit = column(page, TEST_MSE_OVER_LIMIT)
    assert over_limit[-1] == "-", "the failed run is the last"
    assert [float(text) for text in over_limit[:-1]] == sorted(
        run.data.metrics[TEST_MSE_OVER_LIMIT] for run in scored(runs)
    )
    assert len(over_limit) == len(runs), "decisions are not among the trainings"
    assert [name.splitlines()[-1] for name in column(page, "Run Name")][-1] == runs["failed"].info.run_name
    keep(page, "run_list")


def test_losses_of_all_runs_are_drawn_with_the_limit(page: Page, runs: dict[str, Run]) -> None:
    open_view(page, "Trainings")
    show_charts(page)
    for metrics in ((TRAIN_LOSS, VAL_MSE, VAL_LIMIT_MSE), (HOLDOUT_MSE, VAL_LIMIT_MSE), (VAL_MSE_OVER_LIMIT,)):
        # Each is drawn over a faint curve without smoothing.
        curves = chart(page, " vs ".join(metrics)).locator("path.js-line[style*='stroke-opacity: 1;']")
        expect(curves).to_have_count(len(metrics) * len(scored(runs)))
    for metric in (TEST_MSE_OVER_LIMIT, TEST_MSE):
        expect(chart(page, metric).locator(".barlayer .point")).to_have_count(len(scored(runs)))
    keep(page, "loss_curves")


def test_pictures_of_the_runs_are_shown_side_by_side(page: Page, runs: dict[str, Run]) -> None:
    open_view(page, "Trainings")
    show_charts(page)
    page.get_by_text("Pictures", exact=True).scroll_into_view_if_needed()
    for key in COMPARED.values():
        pictures = chart(page, key).locator("img")
        expect(pictures).to_have_count(len(scored(runs)))
        assert all(loaded(picture) for picture in pictures.all())
    chart(page, "training_loss").locator("[data-component-id='fullscreen_button_chartcard']").click()
    large = page.get_by_role("dialog").locator("img")
    expect(large).to_have_count(len(scored(runs)))
    assert all(loaded(picture) for picture in large.all())
    keep(page, "pictures")


def test_the_compare_page_shows_the_parameters_that_differ_and_only_those(page: Page, runs: dict[str, Run]) -> None:
    open_view(page, "Trainings")
    chosen = [runs["original"], runs["default"], runs["gru"]]
    for run in chosen:
        row(page, run).locator("input[aria-label*='row selection']").check(force=True)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("switch", name="Parameters - Show diff only").click()
    table = page.locator("table", has=page.get_by_text("learning_rate", exact=True))
    names = {cells.split("\t")[0] for cells in table.locator("tr").all_inner_texts()}
    assert {"cell", "noise", "split", "optimizer", "recipe"} <= names
    params = [run.data.params for run in chosen]
    differ = {name for name in params[0] if len({one[name] for one in params}) > 1}
    assert names == differ
    keep(page, "compare_page")


def test_a_run_has_a_description_and_a_link_to_its_version(page: Page, champion: Run) -> None:
    open_view(page, "Trainings")
    row(page, champion).get_by_role("link").first.click()
    expect(page.get_by_text("× the limit").first).to_be_visible()
    page.get_by_text("Show more").click()
    assert loaded(page.locator("img[src*='training_loss']"))
    keep(page, "run")
    with page.expect_popup() as opened:
        page.get_by_role("link", name=f"frequency-filter version {version(champion)}").click()
    expect(opened.value.get_by_role("status", name="champion")).to_be_visible()


def test_the_tab_of_system_metrics_has_a_chart_for_each(page: Page, champion: Run) -> None:
    open_view(page, "Trainings")
    row(page, champion).get_by_role("link").first.click()
    page.get_by_role("tab", name="System metrics").click()
    names = [name for name in champion.data.metrics if name.startswith(SYSTEM)]
    assert len(names) >= 5
    for name in names:
        expect(page.get_by_text(name.removeprefix(SYSTEM), exact=True).first).to_be_visible()
    keep(page, "system_metrics")


def test_a_failed_run_shows_the_reason(page: Page, runs: dict[str, Run]) -> None:
    open_view(page, "Trainings")
    row(page, runs["failed"]).get_by_role("link").first.click()
    expect(page.get_by_text("the training loss is not finite in epoch 1").first).to_be_visible()
    expect(page.get_by_text("Failed").first).to_be_visible()


def test_decisions_have_a_page_with_their_reasons(page: Page, runs: dict[str, Run]) -> None:
    open_view(page, "Decisions")
    first, second = column(page, "decision")
    assert first == "PROMOTED"
    assert (second == "PROMOTED") == (six_runs.champion() == "gru")
    assert column(page, "tags.`version`") == [version(runs["default"]), version(runs["gru"])]
    assert "first champion" in column(page, "reason")[0]


def test_the_models_page_has_versions_aliases_and_evidence(page: Page, runs: dict[str, Run], champion: Run) -> None:
    # A first visit opens a dialog, which ignores the key until it is open: press it again then.
    greeting = page.get_by_role("dialog")
    page.add_locator_handler(greeting, lambda: page.keyboard.press("Escape"), no_wait_after=True)
    page.get_by_text("Model registry").first.click()
    page.get_by_role("link", name="frequency-filter").first.click()
    its_link = page.get_by_role("link", name=f"Version {version(champion)}", exact=True)
    its_row = page.get_by_role("row").filter(has=its_link)
    expect(its_row.get_by_role("status", name="champion")).to_be_visible()
    expect(its_row.get_by_text("PROMOTED: ").first).to_be_visible()
    expect(page.get_by_role("link", name=re.compile(r"^Version \d+$"))).to_have_count(len(scored(runs)))
    keep(page, "model")
    its_link.click()
    expect(page.get_by_text("× the limit").first).to_be_visible()
    expect(page.get_by_text("PROMOTED").first).to_be_visible()
    for evidence in ("params_digest", "data_sha256", "model_sha256", "git_commit", "decision_run"):
        expect(page.get_by_text(evidence, exact=True)).to_be_visible()
    keep(page, "version")
