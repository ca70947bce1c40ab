"""From an empty server to restored files, in a real browser, with a real node that the guide enrols.

The tests of this file are one story and run in their order; each begins where the one before ended.
"""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from brs.local import ROOT, Local, free_port
from tests.e2e.browser import CHROMIUM, Sight, sight

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is not installed"),
]

PATIENCE_MS = 60_000
HOSTILE = "<img src=x onerror=alert(1)>.txt"
WANTED = "report.txt"
BULK_FILES, BULK_BYTES = 60, 20_000_000  # of chance, written in hexadecimal: some seconds of work for a node


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("documents")
    (folder / HOSTILE).write_text("harmless")
    (folder / WANTED).write_text("the report\n" * 2000)
    (folder / "empty").mkdir()
    chance = random.Random(7)
    bulk = folder / "bulk"
    bulk.mkdir()
    for number in range(BULK_FILES):
        (bulk / f"part-{number:02}.txt").write_text(chance.randbytes(BULK_BYTES).hex())
    yield folder
    shutil.rmtree(folder)  # gigabytes that pytest would keep


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Iterator[Local]:
    site = Local(data=tmp_path_factory.mktemp("site"), port=free_port(None), read=[str(source)])
    try:
        site.start_server()
        yield site
    finally:
        site.stop()
        shutil.rmtree(site.backups, ignore_errors=True)


@pytest.fixture(scope="module")
def seen(local: Local, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sight]:
    password = local.data / "password"
    password.write_text("correct horse battery")
    local.manage("ensure_admin", "--username", "admin", "--password-file", str(password))
    with sight(local.url, tmp_path_factory.mktemp("shots")) as found:
        found.page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield found


@pytest.fixture(autouse=True)
def in_order(request: pytest.FixtureRequest) -> Iterator[None]:
    """A chapter cannot be told when the one before it failed."""
    session = request.session
    if getattr(session, "brs_story_failed", False):
        pytest.skip("the chapter before failed")
    failed = session.testsfailed
    yield
    session.brs_story_failed = session.testsfailed > failed  # type: ignore[attr-defined]


def test_the_login_page_lets_the_administrator_in(seen: Sight):
    seen.go("/admin/")
    seen.look("login")
    seen.page.fill("#id_username", "admin")
    seen.page.fill("#id_password", "correct horse battery")
    seen.page.click("button[type=submit]")
    expect(seen.page.get_by_text("Three steps to your first backup")).to_be_visible()
    seen.look("first-run")


def test_the_guide_enrols_a_node_and_ticks_it_without_a_reload(seen: Sight, local: Local):
    page = seen.page
    page.evaluate("window.sameVisit = true")
    page.click('[data-step="node"] a')
    page.click("dialog button[type=submit]")
    command = page.locator("#enrol-command").inner_text()
    seen.look("first-run-enrol")
    enrol_as_told(local, command)
    expect(page.locator("#enrol-state [data-enrolled]")).to_be_visible()
    seen.look("first-run-enrolled")
    local.node = local._spawn("node", ["-m", "node_agent", "run", "--state", str(local.node_state)])
    page.click("dialog a.brs-button:has-text('Done')")
    expect(page.locator('[data-step="node"].brs-done')).to_be_visible()


def enrol_as_told(local: Local, command: str) -> None:
    """What the page says to paste, on a machine whose node may touch only the story's folders."""
    for folder in (local.backups, local.restored, local.node_state):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = local.node_state / "node.toml"
    config.write_text(local._node_toml())
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "node_agent"]
    words = [sys.executable, *words[1:], "--state", str(local.node_state), "--config", str(config)]
    done = subprocess.run(words, cwd=ROOT, env=local.env(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_adds_a_destination(seen: Sight, local: Local):
    page = seen.page
    page.click('[data-step="destination"] a')
    expect(page.locator("#id_path")).to_have_value(str(local.backups))
    seen.look("first-run-destination")
    page.fill("#id_name", "Second disk")
    page.click("button[name=_save]")
    expect(page.locator('[data-step="destination"].brs-done')).to_be_visible()


def test_the_guide_protects_something_and_its_backup_runs_before_ones_eyes(seen: Sight, source: Path):
    page = seen.page
    page.click('[data-step="protect"] a')
    page.fill("[name=paths]", str(source))
    page.fill("[name=name]", "Documents")
    seen.look("first-run-protect")
    page.click("button[type=submit]:has-text('Protect')")
    expect(page.locator("#job")).to_be_visible()
    page.evaluate(WATCH_BARS)
    expect(page.locator("#job .brs-head .brs-badge", has_text="Running")).to_be_visible()
    page.wait_for_function("window.bars && window.bars.size >= 1")
    seen.look("job-running", widths=(1440,))
    expect(page.locator("#job .brs-head .brs-badge", has_text="Complete")).to_be_visible()
    assert page.evaluate("window.bars.size") >= 2, "the bar moved without a reload"
    assert page.locator("#job-log div").count() > 0
    seen.look("job-complete")


# Collects the widths that the bars had; lost when the page is loaded anew, which proves that it was not.
WATCH_BARS = """() => {
  window.bars = new Set();
  const note = () => document.querySelectorAll('#job [data-figure="bar"]').forEach((bar) => {
    const width = parseFloat(bar.style.width);
    if (width > 0) window.bars.add(width);
  });
  note();
  new MutationObserver(note).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""


def test_the_overview_says_that_it_is_protected(seen: Sight):
    seen.go("/admin/")
    expect(seen.page.locator(".brs-ring text").first).to_have_text("1")
    expect(seen.page.get_by_text("Recovery kit of")).to_be_visible()
    seen.look("overview")


def test_back_up_now_is_a_dialog_and_a_second_point(seen: Sight):
    page = seen.page
    seen.go("/admin/inventory/workload/")
    seen.look("workloads")
    page.click("#result_list a:has-text('Documents')")
    page.click("a:has-text('Back up now')")
    expect(page.locator("dialog[open]")).to_be_visible()
    seen.look("back-up-now")
    page.click("dialog[open] button[type=submit]")
    expect(page.locator("#job .brs-head .brs-badge", has_text="Complete")).to_be_visible()
    page.click("#job a:has-text('Documents') >> nth=0")
    expect(page.locator(".brs-line .brs-dot")).to_have_count(2)
    seen.look("workload")


def test_the_wizard_restores_chosen_files_to_a_folder(seen: Sight, local: Local, source: Path):
    page = seen.page
    seen.go("/admin/restore/")
    seen.look("restore-wizard-what")
    page.click("a:has-text('Choose')")
    expect(page.locator("input[name=point]:checked")).to_have_count(1)
    seen.look("restore-wizard-point")
    page.click("button:has-text('Next')")
    page.check("input[name=what][value=chosen]")
    open_folder(seen, source)
    page.check(f'input[data-path="{source}/{WANTED}"]')
    hostile = page.locator(".brs-tree label", has_text=HOSTILE)
    expect(hostile).to_be_visible()  # as text, not as a picture
    hostile.click()
    seen.look("restore-wizard-files")
    page.click("button:has-text('Next')")
    seen.look("restore-wizard-target")
    page.click("button:has-text('Next')")
    expect(page.get_by_text("2 chosen items")).to_be_visible()
    seen.look("restore-wizard-confirm")
    page.click("button:has-text('Restore')")
    expect(page.locator("#job .brs-head .brs-badge", has_text="Complete")).to_be_visible()
    expect(page.get_by_text("Where it lies")).to_be_visible()
    seen.look("restore-wizard-result")
    restored = {one.name: one.read_bytes() for one in local.restored.rglob("*") if one.is_file()}
    assert restored == {name: (source / name).read_bytes() for name in (WANTED, HOSTILE)}


def open_folder(seen: Sight, folder: Path) -> None:
    """Folder by folder down the tree; one that is the only choice has opened by itself."""
    for above in [one for one in (*reversed(folder.parents), folder) if one != Path("/")]:
        toggle = seen.page.locator(f'[data-open="{above}"]')
        expect(toggle).to_be_visible()
        seen.page.wait_for_timeout(150)
        if toggle.get_attribute("aria-expanded") != "true":
            toggle.click()


def test_a_single_file_is_downloaded(seen: Sight, source: Path, tmp_path: Path):
    page = seen.page
    seen.go("/admin/restore/")
    page.click("a:has-text('Choose')")
    page.click("button:has-text('Next')")
    page.check("input[name=what][value=chosen]")
    page.fill("#tree-q", "report")
    page.click(f'button[name=path][value="{source}/{WANTED}"]')
    link = page.locator("#download-link")
    expect(link).to_be_visible()
    seen.look("download")
    with page.expect_download() as started:
        link.click()
    started.value.save_as(tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (source / WANTED).read_bytes()
    assert started.value.suggested_filename == WANTED


def test_the_recovery_kit_is_saved_and_asked_for_no_more(seen: Sight):
    page = seen.page
    seen.go("/admin/kits/")
    page.click("a:has-text('Save the kit')")
    with page.expect_download() as started:
        page.click("dialog[open] button[type=submit]")
    assert "restic" in Path(started.value.path()).read_text()
    seen.go("/admin/")
    expect(page.get_by_text("Recovery kit of")).to_have_count(0)


PLACES = {
    "jobs": "/admin/jobs/job/",
    "policies": "/admin/policies/policy/",
    "platforms": "/admin/inventory/platform/",
    "nodes": "/admin/inventory/node/",
    "destinations": "/admin/inventory/destination/",
    "repositories": "/admin/inventory/repository/",
    "restore-points": "/admin/catalog/restorepoint/",
    "activity": "/admin/reports/activity/",
    "audit": "/admin/iam/auditevent/",
    "users": "/admin/iam/user/",
    "tenants": "/admin/iam/tenant/",
    "members": "/admin/iam/membership/",
    "tokens": "/admin/iam/apitoken/",
    "recovery-kits": "/admin/kits/",
    "scheduler": "/admin/django_celery_beat/periodictask/",
    "protect": "/admin/protect/",
    "policy-new": "/admin/policies/policy/add/",
}
OBJECTS = ("policies", "platforms", "nodes", "destinations", "repositories", "restore-points", "tenants", "audit")


@pytest.mark.parametrize("name", PLACES)
def test_every_place_of_the_side_bar_is_sound(seen: Sight, name: str):
    seen.go(PLACES[name])
    seen.look(f"place-{name}")
    if name in OBJECTS:
        seen.page.locator("#result_list a[href*='/change/']").first.click()
        expect(seen.page.locator("#content-main, .brs").first).to_be_visible()
        seen.look(f"page-{name}")


def test_dark_mode_is_sound_too(seen: Sight):
    seen.page.emulate_media(color_scheme="dark")
    try:
        seen.go("/admin/")
        seen.look("overview-dark")
    finally:
        seen.page.emulate_media(color_scheme="light")


def test_the_page_says_when_the_server_is_away_and_comes_back_by_itself(seen: Sight, local: Local):
    seen.go("/admin/")
    seen.page.wait_for_function("window.brsLive.ready")
    seen.allowed += ["WebSocket", "ERR_CONNECTION", "Failed to fetch", "Failed to load resource"]
    assert local.server is not None
    local.server.terminate()
    local.server.wait(30)
    expect(seen.page.locator("#brs-lost")).to_be_visible()
    local.start_server()
    expect(seen.page.locator("#brs-lost")).to_be_hidden()
    seen.page.wait_for_function("window.brsLive.ready")
    seen.sound()
