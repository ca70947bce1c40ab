"""From "Add platform" to a virtual machine that runs again, in a real browser, with a real hypervisor.

The tests of this file are one story and run in their order. The hypervisor is the lab's (libvirt, qemu and sshd of
their own); server and node are started as ``make run`` starts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from node_agent.protocol import fingerprint
from tests.e2e.browser import CHROMIUM, WIDTHS, Sight, chapter, sight
from tests.e2e.make_run import MakeRun
from tests.e2e.make_run import site as new_site
from tests.lab.libvirt import Guest, Lab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is not installed"),
]
PATIENCE_MS = 120_000
BANDWIDTH_MIB_S = 8  # 40 MiB are read, so there is time to look at it
NAME = "brs-lab-shop"
AGAIN = "shop-again"


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    made = lab.guest("shop", "mixed")
    made.start()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def other(lab: Lab) -> Iterator[Guest]:
    """It does not run, and no rule brings it under a policy."""
    made = lab.guest("scratchpad", "raw")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[MakeRun]:
    with new_site() as made:
        yield made


@pytest.fixture(scope="module")
def seen(site: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sight]:
    with sight(site.url, tmp_path_factory.mktemp("shots"), PATIENCE_MS) as found:
        found.go("/admin/")
        found.page.fill("#id_username", "admin")
        found.page.fill("#id_password", site.password)
        found.page.click("button[type=submit]")
        expect(found.page.get_by_text("Three steps to your first backup")).to_be_visible()
        yield found


@pytest.fixture(autouse=True)
def in_order(request: pytest.FixtureRequest, site: MakeRun) -> Iterator[None]:
    """What server and node said is told with a failure."""
    failed = request.session.testsfailed
    with chapter(request):
        yield
    if request.session.testsfailed > failed:
        for log in sorted((site.data / "log").iterdir()):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")


def complete(seen: Sight) -> None:
    expect(seen.page.locator("#job .brs-head .brs-badge", has_text="Complete")).to_be_visible()


def do(seen: Sight, words: str) -> None:
    """An act on what the page shows, confirmed in its dialog; then its job to the end."""
    seen.page.click(f"a:has-text('{words}')")
    seen.page.click("dialog[open] button[type=submit]")
    expect(seen.page.locator("#job")).to_be_visible()


def test_a_platform_is_added_and_shows_its_key_before_anybody_logs_in(
    seen: Sight, lab: Lab, guest: Guest, other: Guest
) -> None:
    page, state = seen.page, lab.state()
    assert state is not None
    assert guest.state == "running"
    assert other.state == "shut off"
    seen.go("/admin/inventory/destination/add/")
    page.fill("#id_name", "Second disk")
    page.click("button[name=_save]")
    seen.go("/admin/inventory/platform/add/")
    expect(page.locator("[name=kind]")).to_have_value("kvm")
    page.fill("#id_name", "Rack 7")
    page.fill("[name=addresses_text]", f"127.0.0.1:{state.port}")
    page.fill("[name=told_scratch]", f"{lab.folder}/scratch")
    page.fill("[name=bandwidth_mib_s]", str(BANDWIDTH_MIB_S))
    page.evaluate("scrollTo(0, 0)")
    seen.look("platform-add")
    page.fill("[name=told_private_key]", state.private_key)  # on no picture
    page.click("button[name=_save]")
    expect(page.get_by_text("Is this your host?")).to_be_visible()  # the page is not loaded anew
    expect(page.get_by_text(fingerprint(state.host_key)).first).to_be_visible()
    seen.look("platform-key")


def test_the_key_is_confirmed_and_the_checks_appear(seen: Sight) -> None:
    page = seen.page
    page.click("a:has-text('Confirm the host key')")
    expect(page.locator("dialog[open] input[name=keys]")).to_be_checked()
    seen.look("machine-confirm")
    page.click("dialog[open] button[type=submit]")
    complete(seen)
    seen.go("/admin/inventory/platform/")
    page.click("#result_list a:has-text('Rack 7')")
    expect(page.locator("#platform .brs-head .brs-badge", has_text="Fine")).to_be_visible()
    page.click("#checks summary")
    expect(page.get_by_text("A short backup job is read through the tunnel")).to_be_visible()


def test_machines_are_found_and_come_under_a_policy_by_a_rule(seen: Sight) -> None:
    page = seen.page
    platform = page.url
    do(seen, "Look for machines")
    complete(seen)
    page.goto(platform)
    for name, state in ((NAME, "running"), ("brs-lab-scratchpad", "stopped")):
        row = page.locator("#platform tbody tr", has_text=name)
        expect(row.get_by_text("Not protected")).to_be_visible()
        expect(row.get_by_text(state)).to_be_visible()
    seen.go("/admin/policies/policy/add/")
    page.fill("[name=name]", "Machines every night")
    page.select_option("[name=destination]", label="Second disk")
    page.locator("#schedules-group").get_by_text("Add another").click()
    page.locator("#rules-group").get_by_text("Add another").click()
    page.fill("[name=rules-0-pattern]", "*SHOP")
    expect(page.locator("#matches a", has_text=NAME)).to_be_visible()
    seen.look("policy-rules")
    page.click("button[name=_save]")
    page.goto(platform)
    row = page.locator("#platform tbody tr", has_text=NAME)
    expect(row.get_by_text("Machines every night")).to_be_visible()
    expect(row.get_by_text("by rule")).to_be_visible()
    seen.look("platform")


def test_a_machine_is_backed_up_disk_by_disk(seen: Sight, guest: Guest) -> None:
    page = seen.page
    page.click(f"#platform a:has-text('{NAME}')")
    workload = page.url
    do(seen, "Back up now")
    for disk in ("vda", "vdb"):
        expect(page.locator("#job [data-parts] li", has_text=disk)).to_be_visible()
    seen.look("vm-job", widths=WIDTHS[:1])  # a job that ends in between would look else in the second width
    complete(seen)
    expect(page.locator("#job-log", has_text="file systems were held")).to_be_visible()
    seen.look("machine-job")
    guest.run("head -c 5000000 /dev/urandom >/data/orders && sync")
    page.goto(workload)
    do(seen, "Back up now")
    complete(seen)
    page.click(f"#job a:has-text('{NAME}') >> nth=0")
    expect(page.locator("#workload .brs-line .brs-dot").first).to_be_visible()
    expect(page.locator("#workload td", has_text="incremental")).to_be_visible()
    expect(page.locator("#workload", has_text="by hand only")).to_have_count(0)  # the schedule as it was proposed
    seen.look("vm")


def test_the_machine_is_brought_back_and_runs(seen: Sight, lab: Lab, guest: Guest) -> None:
    page = seen.page
    page.click(".brs-head a:has-text('Restore')")
    page.click("button:has-text('Next')")
    seen.look("machine-disks")
    page.click("button:has-text('Next')")
    page.fill("[name=name]", AGAIN)
    page.fill("[name=storage]", f"{lab.folder}/scratch")
    page.locator("[name=start]").check(force=True)
    seen.look("machine-target")
    page.click("button:has-text('Next')")
    expect(page.get_by_text(f"A new machine “{AGAIN}” is made on “Rack 7”.")).to_be_visible()
    seen.look("vm-restore")
    page.click("button:has-text('Restore')")
    complete(seen)
    seen.look("machine-restored")
    assert lab.virsh("domstate", AGAIN).strip() == "running"
    again = Guest(lab, AGAIN, lab.virsh("domuuid", AGAIN).strip(), {})
    again.wait_for_agent()
    assert again.run("md5sum </data/orders") == guest.run("md5sum </data/orders")
    lab.virsh("destroy", AGAIN)
    lab.virsh("undefine", AGAIN)
    lab.shell(f"rm {lab.folder}/scratch/{AGAIN}-vd?.*")
