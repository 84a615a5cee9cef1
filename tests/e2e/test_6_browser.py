"""In the browser: the connection's form, its test, the pool, and a run of the example DAG that waits for its quota."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Response, expect, sync_playwright

from airflow_provider_amplemarket.sandbox import Sandbox
from dev.observed import ObservedAirflow
from tests.e2e import truth
from tests.e2e.conftest import API_KEY, CONN_ID, LIMIT, PERIOD, POOL, connect

pytestmark = pytest.mark.e2e

DAG_ID = "amplemarket_recordings"
WRONG_KEY = "sk_live_of_yesterday"
#: Of the ten calls, four must wait.
CALLS, FEW, SHORT = 10, 6, 30
#: Milliseconds that a page may take on a busy machine.
PATIENCE = 60_000
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium() -> str:
    """Give the browser's path; only a machine that nobody has prepared may do without."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        reason = "there is no Chromium: install Debian's package chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the screenshots; ``SCREENSHOTS=docs`` renews those of the README."""
    return Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(scope="module")
def own_sandbox() -> Iterator[Sandbox]:
    """Give an account whose quota is used up after a few recordings."""
    with Sandbox(api_key=API_KEY, limit=FEW, period=SHORT) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def vacated(chromium: str, airflow: ObservedAirflow, sandbox: Sandbox) -> Iterator[ObservedAirflow]:
    """Take away the connection that the example DAG uses, with its ledger, and put it back at the end."""
    forget(airflow)
    yield airflow
    forget(airflow)
    connect(airflow, CONN_ID, sandbox, LIMIT, PERIOD)


def forget(airflow: ObservedAirflow) -> None:
    """Remove the default connection and its ledger, as far as they are there."""
    if airflow.db.rows("SELECT 1 FROM connection WHERE conn_id = %s", CONN_ID):
        airflow.rest("DELETE", f"/connections/{CONN_ID}")
    if airflow.variable(ledger := f"amplemarket_quota__{CONN_ID}") is not None:
        airflow.rest("DELETE", f"/variables/{ledger}")


@pytest.fixture(scope="module")
def page(chromium: str, vacated: ObservedAirflow) -> Iterator[Page]:
    """Give the one page in which everything happens."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield page
        browser.close()


@contextmanager
def watched(page: Page, folder: Path) -> Iterator[None]:
    """Keep a picture of what could be seen when something went wrong."""
    try:
        yield
    except BaseException as problem:
        picture = folder / "failure.png"
        page.screenshot(path=picture)
        problem.add_note(f"{page.url} looked like {picture}")
        raise


def section(dialog: Locator, name: str, first_field: str) -> None:
    """Open a section of the connection's form."""
    dialog.get_by_role("button", name=name, exact=True).click()
    expect(dialog.locator(f'input[name="{first_field}"]')).to_be_visible()


def connections(page: Page, airflow: ObservedAirflow) -> Locator:
    """Go to the list of connections, and return the row of ours."""
    page.goto(f"{airflow.url}/connections")
    return page.get_by_role("row").filter(has=page.get_by_role("cell", name=CONN_ID, exact=True))


def press_test(page: Page, airflow: ObservedAirflow) -> Locator:
    """Press the connection's test, and return the message."""
    connections(page, airflow).get_by_role("button", name="Test Connection").click()
    return page.get_by_role("status").filter(has_text="Test Connection")


def take(page: Page, last: Locator, picture: Path) -> None:
    """Take a picture of the page's main part, down to an element."""
    heading, box = page.get_by_role("heading", name="archive").last.bounding_box(), last.bounding_box()
    assert heading
    assert box
    left, top = box["x"] - 8, heading["y"] - 12
    clip = {"x": left, "y": top, "width": box["width"] + 16, "height": box["y"] + box["height"] + 8 - top}
    page.screenshot(path=picture, clip=clip)  # type: ignore[arg-type]


def test_the_form_asks_for_what_is_needed_and_the_key_never_comes_back(
    page: Page, vacated: ObservedAirflow, own_sandbox: Sandbox, pictures: Path, tmp_path: Path
) -> None:
    with watched(page, tmp_path):
        page.goto(f"{vacated.url}/connections")
        page.get_by_role("button", name="Add Connection").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("textbox", name="Connection ID").fill(CONN_ID)
        dialog.get_by_role("combobox").fill("amplemarket")
        page.get_by_role("option", name="Amplemarket", exact=True).click()

        host, key = dialog.locator('input[name="host"]'), dialog.locator('input[name="password"]')
        expect(host).to_have_attribute("placeholder", "https://api.amplemarket.com")
        for label in ("Base URL", "API key"):
            expect(dialog.get_by_text(label, exact=True)).to_be_visible()
        for name, label in {"login": "Login", "port": "Port", "schema": "Schema"}.items():
            expect(dialog.locator(f'input[name="{name}"]')).to_have_count(0)
            expect(dialog.get_by_text(label, exact=True)).to_have_count(0)
        key.fill(WRONG_KEY)
        expect(key).to_have_attribute("type", "password")
        dialog.screenshot(path=pictures / "connection-form.png")
        host.fill(own_sandbox.url)

        section(dialog, "Extra Fields", "element_recording_limit")
        fields = {"Recording limit (requests)": 50, "Recording period (seconds)": 3600, "Time-out (seconds)": 60}
        for label, default in fields.items():
            expect(dialog.get_by_label(label)).to_have_value(str(default))
        dialog.screenshot(path=pictures / "connection-extra.png")
        dialog.get_by_label("Recording limit (requests)").fill(str(FEW))
        dialog.get_by_label("Recording period (seconds)").fill(str(SHORT))

        responses: list[Response] = []
        page.on("response", lambda response: responses.append(response))
        dialog.get_by_role("button", name="Save").click()
        expect(dialog).to_be_hidden()
        row = page.get_by_role("row").filter(has_text=CONN_ID)
        row.get_by_role("button", name="Edit Connection").click()
        expect(key).to_have_value("***")
        received = "".join([response.text() for response in responses if "/connections" in response.url])
        assert own_sandbox.url in received
        assert WRONG_KEY not in received
        assert WRONG_KEY not in page.content()


def test_the_test_button_tells_a_wrong_key_from_a_good_one_and_costs_nothing(
    page: Page, vacated: ObservedAirflow, own_sandbox: Sandbox, tmp_path: Path
) -> None:
    # Airflow 3.3.2's page sends the port 0 for a connection without one, which its own API refuses as another host.
    port = {"connection_id": CONN_ID, "conn_type": "amplemarket", "port": int(own_sandbox.url.rpartition(":")[2])}
    vacated.rest("PATCH", f"/connections/{CONN_ID}?update_mask=port", port)
    with watched(page, tmp_path):
        message = press_test(page, vacated)
        expect(message).to_contain_text("Test Connection Failed")
        expect(message).to_contain_text("401")
        expect(message).to_contain_text("check the API key")

        connections(page, vacated).get_by_role("button", name="Edit Connection").click()
        dialog = page.get_by_role("dialog")
        dialog.locator('input[name="password"]').fill(API_KEY)
        dialog.get_by_role("button", name="Save").click()
        expect(dialog).to_be_hidden()

        message = press_test(page, vacated)
        expect(message).to_contain_text("Test Connection Successful")
        expect(message).to_contain_text(f"{own_sandbox.url} accepts the API key")
    assert [(entry.path, entry.status) for entry in own_sandbox.log] == [("/account-info", 401), ("/account-info", 200)]


def test_the_pool_is_on_the_page_of_the_pools(page: Page, vacated: ObservedAirflow, tmp_path: Path) -> None:
    with watched(page, tmp_path):
        page.goto(f"{vacated.url}/pools")
        expect(page.get_by_text(f"{POOL} (1 Slots)")).to_be_visible()
        expect(page.get_by_text("One slot, deferred tasks included")).to_be_visible()


def test_a_run_of_the_example_is_seen_to_wait_and_then_to_be_green_with_its_summary(
    page: Page, vacated: ObservedAirflow, own_sandbox: Sandbox, archives: Path, pictures: Path, tmp_path: Path
) -> None:
    archive = archives / "example"
    vacated.rest("POST", "/variables", {"key": "amplemarket_archive", "value": archive.as_uri()})
    # The schedule's own run comes first, so that it does not take the calls from the other one.
    vacated.unpause(DAG_ID)
    vacated.wait_for_runs(DAG_ID, count=1)
    calls = truth.add_calls(own_sandbox, "call", CALLS, datetime.now(UTC) - timedelta(days=2))
    with watched(page, tmp_path):
        page.goto(f"{vacated.url}/dags/{DAG_ID}")
        page.get_by_role("button", name="Trigger Dag").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Trigger", exact=True).click()
        expect(dialog).to_be_hidden()
        run = vacated.wait("the run", lambda: vacated.runs(DAG_ID)[1:])[0]["run_id"]
        task = f"{vacated.url}/dags/{DAG_ID}/runs/{run}/tasks/archive"
        page.goto(task)
        expect(page.get_by_text("Deferred", exact=True).first).to_be_visible()
        expect(page.get_by_text(re.compile("is used up: waiting in the triggerer until")).first).to_be_visible()
        expect(page.get_by_text("Success", exact=True).first).to_be_visible()
        page.goto(f"{task}/xcom")
        row = page.get_by_role("row").filter(has=page.get_by_role("cell", name="summary", exact=True))
        # The value comes folded.
        row.locator(".codicon-folding-collapsed").click()
        for figure in ("stored", "permits_spent"):
            expect(row).to_contain_text(re.compile(rf'"{figure}":\s*{CALLS}\b'))
        take(page, row, pictures / "run.png")
    vacated.wait_for_runs(DAG_ID, count=2)
    vacated.pause(DAG_ID)
    truth.check_archive(own_sandbox, archive, calls)
    assert own_sandbox.most_in_any_period() <= FEW
    assert not truth.refused(own_sandbox.recording_requests())
