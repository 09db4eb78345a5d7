"""MLflow's page and the report as a person sees them, visited by a script. Opt-in: `make test-browser`.

With SCREENSHOTS=folder in the environment, what was seen is kept there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.layout import Output
from pipeline.reporting.files import write_report
from pipeline.reporting.report import make_report
from pipeline.tracking.tracker import Tracker
from tests.browser import chromium, new_page
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_snapshot, write_spool

pytestmark = pytest.mark.browser


def _keep(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A finished sweep with known numbers, prototypes at two steps and a report."""
    output, sample = Output(tmp_path_factory.mktemp("browser")), experiment()
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    tracker.start_summary(output.sweep("sample"), sample)
    for trial, folder in trials(output, sample):
        write_spool(trial, folder)
        for step in (0, 20):
            write_snapshot(folder, step)
        delivery = tracker.start_trial(folder, trial, "sample", EXTRA)
        tracker.end_trial(delivery, "FINISHED")
    report = make_report(output.tracking_uri, "tests", "sample")
    tracker.end_summary("FINISHED", write_report(report, output.sweep("sample") / "report"))
    assert not tracker.close("FINISHED")
    return output


@pytest.fixture(scope="module")
def links(output):
    """What `tiny-onn ui` prints, by name, while its server runs."""
    words = [sys.executable, "-m", "pipeline.cli", "ui", "--output", str(output.root), "--experiment", "tests"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as command:
        try:
            urls, name = {}, ""
            for line in iter(command.stdout.readline, ""):
                if "Ctrl-C" in line:
                    break
                if line.startswith("  "):
                    urls[name] = line.strip()
                name = line.strip().rstrip(":")
            yield urls
        finally:
            command.terminate()
            command.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser):
    return new_page(browser)


def _open(page, link):
    page.goto("about:blank")  # a link that differs behind the # alone would load nothing anew
    page.goto(link)
    close = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    page.get_by_text("tiny-onn").or_(page.get_by_text("tests")).first.wait_for()
    page.wait_for_timeout(2000)
    if close.count():  # it opens by itself, once in each browser
        close.first.click()


def test_the_runs_table_is_readable_without_touching_it(page, links):
    _open(page, links["leaderboard by arm"])
    page.get_by_text("per_token · s0").wait_for()
    text = page.inner_text("body")
    _keep(page, "leaderboard")
    for arm in ("per_token", "aggregated", "task_only"):
        for seed in range(3):
            assert f"{arm} · s{seed}" in text
    for column in ("held_out/loss", "held_out/token_accuracy", "activation_rate/L0"):
        assert column in text
    assert "Group: task_only" in text  # grouped by arm, the groups open
    assert "summary" not in text


def test_the_arms_curves_are_comparable_at_once(page, links):
    _open(page, links["curves by arm"])
    page.get_by_text("Arms", exact=True).wait_for()
    curves = page.locator(".js-plotly-plot .scatterlayer .trace")
    curves.first.wait_for(state="attached")
    page.wait_for_timeout(6000)
    _keep(page, "curves")
    titles = page.inner_text("body")
    assert "train/task_loss" in titles
    assert curves.count() >= 3 * 3  # three arms in each of the charts that are in sight


def test_every_run_is_a_dot_over_its_density(page, links):
    _open(page, links["held-out loss over active experts"])
    page.get_by_text("held_out/density vs. held_out/loss").first.wait_for()
    dots = page.locator(".js-plotly-plot .scatterlayer .trace .point")
    dots.first.wait_for(state="attached")
    page.wait_for_timeout(4000)
    _keep(page, "density")
    assert dots.count() == 8  # nine runs, of which one has no finite loss


def test_prototypes_step_through_training(page, links):
    _open(page, links["prototypes, step by step"])
    page.get_by_text("Prototypes", exact=True).wait_for()
    images = page.locator("img[src*='prototype_distribution']")
    images.first.wait_for(state="attached")
    page.wait_for_timeout(4000)
    _keep(page, "prototypes")
    assert images.count() == 3  # one seed of each arm
    before = images.first.get_attribute("src")
    slider = page.get_by_role("slider").first
    slider.scroll_into_view_if_needed()
    slider.focus()
    slider.press("ArrowLeft")
    page.wait_for_timeout(6000)
    _keep(page, "prototypes-before")
    assert images.first.get_attribute("src") != before  # the image of another step


def test_a_run_says_what_it_is(page, links):
    _open(page, links["leaderboard by arm"])
    page.get_by_text("per_token · s0").click()
    page.get_by_text("Known numbers.").first.wait_for()
    text = page.inner_text("body")
    _keep(page, "run")
    for said in ("arc-agi-2 (01234567)", "sweep", "sample", "per_token"):
        assert said in text


def test_the_report_opens_inside_the_page(page, links):
    _open(page, links["report of sample"])
    frame = page.frame_locator("iframe").first
    frame.get_by_role("heading", name="Means over seeds").wait_for()
    _keep(page, "report-in-mlflow")
    widths = frame.locator("figure img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(widths) >= 4
    assert all(width > 0 for width in widths)  # each figure can be drawn


@pytest.mark.parametrize("width", [390, 1100])
def test_the_report_fits_a_phone_and_a_desk(output, browser, width):
    page, asked = new_page(browser, width, 900), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((output.sweep("sample") / "report" / "report.html").as_uri())
    _keep(page, f"report-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # only tables and figures scroll
    assert [url[:40] for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()
