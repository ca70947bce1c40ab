"""From an empty ``make run`` to restored files and disks, in a real browser.

The tests of this file are one story and run in their order; each begins where the one before ended. Nothing in it is
staged: server and node are started as ``make run`` starts them, the login is what it prints, the data is real.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from brs import demo_image
from brs.local import ROOT
from tests.e2e.browser import CHROMIUM, Sight, chapter, sight
from tests.e2e.make_run import COMMAND, MakeRun
from tests.e2e.make_run import site as new_site

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is not installed"),
]

PATIENCE_MS = 60_000
HOSTILE = "<img src=x onerror=alert(1)>.txt"
WANTED = "report.txt"
LETTERS = 400
PHOTOS, PHOTO_BYTES = 80, 4 << 20  # of chance, so that all of it is written; a node reads some 130 MB ahead …
BANDWIDTH_MIB_S = 8  # … and the rest takes its time on the slowest machine: some 25 seconds to be looked at


@pytest.fixture(scope="module")
def site() -> Iterator[MakeRun]:
    with new_site() as made:
        yield made


@pytest.fixture(scope="module")
def source(site: MakeRun) -> Path:
    """Below the data folder, which the local node may read."""
    folder = site.data / "documents"
    (folder / "letters").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / HOSTILE).write_text("harmless")
    (folder / WANTED).write_text("the report\n" * 2000)
    words = (ROOT / "LICENSE").read_text().split()
    chance = random.Random(7)
    for number in range(LETTERS):
        (folder / "letters" / f"letter-{number:03}.txt").write_text(" ".join(chance.choices(words, k=4000)))
    return folder


@pytest.fixture(scope="module")
def seen(site: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sight]:
    with sight(site.url, tmp_path_factory.mktemp("shots"), PATIENCE_MS) as found:
        yield found


@pytest.fixture(autouse=True)
def in_order(request: pytest.FixtureRequest) -> Iterator[None]:
    with chapter(request):
        yield


def badge(seen: Sight, word: str) -> Locator:
    return seen.page.locator("#job .brs-head .brs-badge", has_text=word)


def complete(seen: Sight) -> None:
    expect(badge(seen, "Complete")).to_be_visible()


def test_the_story_is_told_of_what_make_run_starts(site: MakeRun):
    recipe = re.search(r"^run:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert f"python {COMMAND}" in recipe[1]
    assert f"https://localhost:{site.port}/" in site.said
    assert site.password


def test_the_login_that_make_run_prints_opens_the_first_run_guide(seen: Sight, site: MakeRun):
    seen.go("/admin/")
    seen.look("login")
    seen.page.fill("#id_username", "admin")
    seen.page.fill("#id_password", site.password)
    seen.page.click("button[type=submit]")
    expect(seen.page.get_by_text("Three steps to your first backup")).to_be_visible()
    step = seen.page.locator('[data-step="node"].brs-done')
    expect(step.get_by_text("local", exact=True)).to_be_visible()  # make run enrols its own node
    seen.look("first-run")


def test_the_guide_adds_a_destination(seen: Sight, site: MakeRun):
    page = seen.page
    page.click('[data-step="destination"] a')
    expect(page.locator("#id_path")).to_have_value(str(site.backups))
    page.select_option("#id_kind", "s3")
    expect(page.locator("#id_path")).to_have_value("")  # that folder is none of a bucket's
    page.select_option("#id_kind", "local")
    expect(page.locator("#id_path")).to_have_value(str(site.backups))
    page.fill("#id_name", "Second disk")
    seen.look("first-run-destination")
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
    page.evaluate("window.sameVisit = true")
    complete(seen)
    assert page.evaluate("window.sameVisit"), "it ended without a reload"
    assert page.locator("#job-log div").count() > 0
    seen.look("job-complete")


def test_the_overview_says_that_it_is_protected(seen: Sight):
    seen.go("/admin/")
    expect(seen.page.locator(".brs-ring text").first).to_have_text("1")
    expect(seen.page.get_by_text("Recovery kit of")).to_be_visible()
    seen.look("after-the-first-backup")


# --- a second node ----------------------------------------------------------------------------------


def test_the_command_of_the_nodes_page_enrols_a_second_node(seen: Sight, site: MakeRun):
    page = seen.page
    seen.go("/admin/inventory/node/")
    page.click("a.addlink >> visible=true")
    page.fill("dialog [name=node_name]", "web-1")
    seen.look("enrol")
    page.click("dialog button[type=submit]")
    command = page.locator("#enrol-command").inner_text()
    start = page.locator("#run-command").inner_text()
    assert "web-1" in site.paste(command)
    expect(page.locator("#enrol-state [data-enrolled]")).to_be_visible()
    seen.look("enrolled")
    site.start_other_node(start)
    page.click("dialog a.brs-button:has-text('Done')")
    row = page.locator("#result_list tr", has_text="web-1")
    expect(row.locator(".brs-badge", has_text="Online")).to_be_visible()


def test_a_node_is_paused_labelled_and_resumed(seen: Sight):
    page = seen.page
    page.click("#result_list a:has-text('web-1')")
    page.click("a:has-text('Pause')")
    page.click("dialog[open] button[type=submit]")
    expect(page.locator(".brs-head .brs-badge", has_text="Paused")).to_be_visible()
    page.click("#settings summary")
    page.fill("[name=labels]", "zone:a, rack:7")
    seen.look("node")
    page.click("button[name=_save]")
    page.click("#result_list a:has-text('web-1')")
    expect(page.get_by_text("rack:7")).to_be_visible()
    page.click("a:has-text('Resume')")
    page.click("dialog[open] button[type=submit]")
    expect(page.locator(".brs-head .brs-badge", has_text="Online")).to_be_visible()


# --- a disk image -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disk(site: MakeRun, source: Path) -> Path:
    folder = site.data / "machines"
    folder.mkdir()
    return demo_image.build(folder, source).rename(folder / "web-server.raw")


def protect(seen: Sight, kind: str, path: Path, name: str, policy: str) -> None:
    page = seen.page
    seen.go("/admin/protect/")
    page.check(f"input[name=kind][value={kind}]")
    page.select_option("[name=node]", label="local")
    page.fill("[name=paths]", str(path))
    page.fill("[name=name]", name)
    page.select_option("[name=policy]", label=policy)
    page.click("button[type=submit]:has-text('Protect')")
    complete(seen)


def wizard(seen: Sight, workload: str) -> None:
    """What and which point: the newest good one, as it is proposed."""
    seen.go("/admin/restore/")
    seen.page.click(f"tr:has-text('{workload}') a:has-text('Choose')")
    expect(seen.page.locator("input[name=point]:checked")).to_have_count(1)
    seen.page.click("button:has-text('Next')")


def test_a_disk_image_is_restored_to_a_file_of_ones_choice(seen: Sight, site: MakeRun, disk: Path):
    page = seen.page
    protect(seen, "image", disk, "Web server", "Daily to Second disk")
    wizard(seen, "Web server")
    page.click("button:has-text('Next')")
    target = site.restored / "web-server-again.raw"
    page.fill("[name=path]", str(target))
    seen.look("restore-wizard-image")
    page.click("button:has-text('Next')")
    expect(page.get_by_text(str(target))).to_be_visible()
    page.click("button:has-text('Restore')")
    complete(seen)
    seen.look("restore-image-result")
    assert target.read_bytes() == disk.read_bytes()
    assert target.stat().st_blocks * 512 < disk.stat().st_size, "holes stay holes"


# --- a policy that keeps no list of files -----------------------------------------------------------


def test_the_list_of_files_is_read_by_a_node_when_the_server_keeps_none(seen: Sight, site: MakeRun, source: Path):
    page = seen.page
    seen.go("/admin/policies/policy/add/")
    page.fill("[name=name]", "Private")
    page.select_option("[name=destination]", label="Second disk")
    page.locator("[name=list_files]").uncheck(force=True)
    page.click("button[name=_save]")
    diary = site.data / "diary"
    diary.mkdir()
    (diary / "monday.txt").write_text("rain")
    (diary / "tuesday.txt").write_text("sun")
    protect(seen, "files", diary, "Diary", "Private")
    wizard(seen, "Diary")
    page.check("input[name=what][value=chosen]")
    expect(page.get_by_text("The server keeps no list of the files")).to_be_visible()
    seen.look("restore-wizard-no-list")
    page.click("button:has-text('Read the list')")
    open_folder(seen, diary)  # it appears by itself
    page.check(f'input[data-path="{diary}/tuesday.txt"]')
    page.click("button:has-text('Next')")
    page.fill("[name=path]", str(site.restored / "diary"))
    page.click("button:has-text('Next')")
    page.click("button:has-text('Restore')")
    complete(seen)
    found = [one for one in (site.restored / "diary").rglob("*") if one.is_file()]
    assert [one.read_text() for one in found] == ["sun"]


# --- a running job ----------------------------------------------------------------------------------


def test_back_up_now_runs_at_the_policys_pace_and_moves_by_itself(seen: Sight, source: Path):
    page = seen.page
    hold_to_a_pace(seen)
    photos = source / "photos"
    photos.mkdir()
    chance = random.Random(8)
    for number in range(PHOTOS):
        (photos / f"photo-{number:02}.jpg").write_bytes(chance.randbytes(PHOTO_BYTES))
    seen.go("/admin/inventory/workload/")
    page.click("#result_list a:has-text('Documents')")
    page.click("a:has-text('Back up now')")
    expect(page.locator("dialog[open]")).to_be_visible()
    seen.look("back-up-now")
    page.click("dialog[open] button[type=submit]")
    expect(page.locator("#job")).to_be_visible()
    job = page.url
    page.evaluate(WATCH_BARS)
    expect(badge(seen, "Running")).to_be_visible()
    page.wait_for_function("window.bars.size >= 2")  # it moved, without a reload
    expect(page.locator("[data-stage=store].brs-active")).to_be_visible()  # the badges have caught up with the bars
    seen.look("job-running")
    seen.go("/admin/")
    page.wait_for_function("parseFloat(document.querySelector('li[data-job] .brs-bar > span')?.style.width) > 0")
    seen.look("overview")
    page.goto(job)
    complete(seen)
    page.click("#job a:has-text('Documents') >> nth=0")
    expect(page.locator(".brs-line .brs-dot")).to_have_count(2)
    seen.look("workload")


def hold_to_a_pace(seen: Sight) -> None:
    seen.go("/admin/policies/policy/")
    seen.page.click("#result_list a:has-text('Daily to Second disk')")
    seen.page.fill("[name=bandwidth_mib_s]", str(BANDWIDTH_MIB_S))
    seen.page.click("button[name=_save]")
    expect(seen.page.locator("#result_list")).to_be_visible()


# Collects the widths that the bars had; lost when the page is loaded anew, which proves that it was not.
WATCH_BARS = """() => {
  window.bars = new Set();
  const note = () => document.querySelectorAll('#job [data-figure="bar"]').forEach((bar) => {
    const width = parseFloat(bar.style.width);
    if (width > 0 && width < 100) window.bars.add(width);
  });
  note();
  new MutationObserver(note).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""


# --- chosen files -----------------------------------------------------------------------------------


def choose_two(seen: Sight, source: Path, target: Path) -> None:
    page = seen.page
    page.check("input[name=what][value=chosen]")
    open_folder(seen, source)
    page.check(f'input[data-path="{source}/{WANTED}"]')
    hostile = page.locator(".brs-tree label", has_text=HOSTILE)
    expect(hostile).to_be_visible()  # as text, not as a picture
    hostile.click()
    seen.look("restore-wizard-files")
    page.click("button:has-text('Next')")
    page.fill("[name=path]", str(target))
    seen.look("restore-wizard-target")
    page.click("button:has-text('Next')")
    expect(page.get_by_text("2 chosen items")).to_be_visible()


def test_the_wizard_restores_chosen_files_to_a_folder(seen: Sight, site: MakeRun, source: Path):
    page = seen.page
    seen.go("/admin/restore/")
    seen.look("restore-wizard-what")
    page.click("tr:has-text('Documents') a:has-text('Choose')")
    expect(page.locator("input[name=point]:checked")).to_have_count(1)
    seen.look("restore-wizard-point")
    page.click("button:has-text('Next')")
    choose_two(seen, source, site.restored / "found")
    seen.look("restore-wizard-confirm")
    page.click("button:has-text('Restore')")
    complete(seen)
    expect(page.get_by_text("Where it lies")).to_be_visible()
    seen.look("restore-wizard-result")
    restored = {one.name: one.read_bytes() for one in (site.restored / "found").rglob("*") if one.is_file()}
    assert restored == {name: (source / name).read_bytes() for name in (WANTED, HOSTILE)}


def test_what_was_there_already_is_said_to_be_left_alone(seen: Sight, site: MakeRun, source: Path):
    wizard(seen, "Documents")
    choose_two(seen, source, site.restored / "found")
    seen.page.click("button:has-text('Restore')")
    complete(seen)
    expect(seen.page.get_by_text("2 existing files were left alone")).to_be_visible()


def open_folder(seen: Sight, folder: Path) -> None:
    """Folder by folder down the tree; one that is the only choice has opened by itself."""
    for above in [one for one in (*reversed(folder.parents), folder) if one != Path("/")]:
        toggle = seen.page.locator(f'[data-open="{above}"]')
        expect(toggle).to_be_visible()
        seen.page.wait_for_timeout(150)
        if toggle.get_attribute("aria-expanded") != "true":
            toggle.click()


def test_the_wizard_is_walked_by_keyboard_alone_up_to_the_last_question(seen: Sight):
    page = seen.page
    seen.go("/admin/restore/")
    for selector, key in (
        ("a[href*='/restore/new/']", "Enter"),
        ("form[data-points] button[type=submit]", "Enter"),
        ("input[name=what][value=all]", "Space"),
        ("form[data-files] .brs-sticky button[type=submit]", "Enter"),
        ("form[data-target] button[type=submit]", "Enter"),
    ):
        tab_to(seen, selector)
        page.keyboard.press(key)
    expect(page.get_by_text("This will happen")).to_be_visible()


def tab_to(seen: Sight, selector: str) -> None:
    """Tab after Tab; what has the focus must be seen to have it."""
    page = seen.page
    page.locator(selector).first.wait_for()
    for _step in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            break
    ring = "() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.boxShadow }"
    assert page.evaluate("selector => document.activeElement.matches(selector)", selector), selector
    assert page.evaluate(ring) != "nonenone", f"no ring on {selector}"


def test_a_single_file_is_downloaded(seen: Sight, source: Path, tmp_path: Path):
    page = seen.page
    wizard(seen, "Documents")
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


def test_the_page_says_when_the_server_is_away_and_comes_back_by_itself(seen: Sight, site: MakeRun):
    seen.go("/admin/")
    seen.page.wait_for_function("window.brsLive.ready")
    seen.allowed += ["WebSocket", "ERR_CONNECTION", "Failed to fetch", "Failed to load resource"]
    site.stop()
    expect(seen.page.locator("#brs-lost")).to_be_visible()
    site.start()
    expect(seen.page.locator("#brs-lost")).to_be_hidden()
    seen.page.wait_for_function("window.brsLive.ready")
    seen.sound()
