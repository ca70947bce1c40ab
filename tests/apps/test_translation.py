"""Vietnamese: the compiled catalogue is what the words' file says, and pages speak it."""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from django.utils import translation

from apps import display
from apps.inventory.models import Node, Workload
from apps.jobs.models import Job, RestoreDraft
from tests.apps.test_admin_scope import page, signed_in

FOLDER = Path(settings.LOCALE_PATHS[0]) / "vi" / "LC_MESSAGES"
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|%[sd]")


def words(block: str, key: str) -> str:
    found = re.search(rf'^{re.escape(key)} (".*"(?:\n".*")*)', block, re.MULTILINE)
    return "".join(ast.literal_eval(line) for line in found[1].split("\n")) if found else ""


def entries() -> Iterator[tuple[str, str, str]]:
    """Message, its plural or nothing, and the translation, of what is translated."""
    for block in (FOLDER / "django.po").read_text().split("\n\n"):
        message, plural = words(block, "msgid"), words(block, "msgid_plural")
        translated = words(block, "msgstr[0]") if plural else words(block, "msgstr")
        if message and translated:
            yield message, plural, translated


def test_the_compiled_catalogue_holds_exactly_what_the_words_file_says():
    with (FOLDER / "django.mo").open("rb") as compiled:
        catalogue = gettext.GNUTranslations(compiled)
    told = {message: translated for message, _plural, translated in entries()}
    assert len(told) > 900
    held = {}
    for message, plural, _translated in entries():
        held[message] = catalogue.ngettext(message, plural, 2) if plural else catalogue.gettext(message)
    assert held == told, "run: manage.py compilemessages -l vi"


# Faces for programs: their words are for who writes one.
FOR_PROGRAMS = re.compile(r"/(api|node_api|results|restores|spool)\w*(/\w+)?\.py:|/api/")


def test_what_a_person_sees_is_translated():
    missing = []
    for block in (FOLDER / "django.po").read_text().split("\n\n"):
        places = re.findall(r"^#: (.*)", block, re.MULTILINE)
        key = "msgstr[0]" if words(block, "msgid_plural") else "msgstr"
        if places and not words(block, key) and not all(FOR_PROGRAMS.search(one) for one in " ".join(places).split()):
            missing.append((words(block, "msgid"), places))
    assert missing == []


def test_every_translation_has_the_places_of_its_message():
    wrong = [
        message
        for message, plural, translated in entries()
        if sorted(PLACEHOLDER.findall(plural or message)) != sorted(PLACEHOLDER.findall(translated))
    ]
    assert wrong == []


def test_states_and_ages_are_said_in_vietnamese():
    with translation.override("vi"):
        assert str(display.look("protected").word) == "Được bảo vệ"
        assert display.duration(130) == "2 phút 10 giây"
    with translation.override("en"):
        assert str(display.look("protected").word) == "Protected"


@pytest.fixture
def client(world) -> Iterator[Client]:
    client = signed_in(world.owner)
    client.defaults["HTTP_ACCEPT_LANGUAGE"] = "vi"
    yield client
    translation.activate("en")  # a request leaves its language with the thread


def test_a_browser_that_asks_for_vietnamese_gets_it_on_the_main_pages(client, world):
    client.get(reverse("admin:restore_new"), {"point": world.alpha.point.pk})
    draft = RestoreDraft.objects.get(user=world.owner)
    said = {
        reverse("admin:index"): ("Tổng quan", "Dữ liệu có được bảo vệ không?", "Mất kết nối. Đang thử lại…"),
        page(Job, "changelist"): ("Công việc", "Mất kết nối. Đang thử lại…"),
        page(Job, "change", world.alpha.job.pk): ("Các lần chạy trước", "còn {0}"),
        page(Workload, "changelist"): ("Sao lưu ngay", "Bản tốt gần nhất"),
        page(Node, "change", world.alpha.node.pk): ("Nút này cho phép", "Ghi danh lại"),
        reverse("admin:restore"): ("Bạn muốn lấy lại gì?",),
        reverse("admin:restore_files", args=[draft.pk]): ("Tệp và thư mục đã chọn",),
    }
    for address, expected in said.items():
        text = client.get(address).content.decode()
        assert '<html lang="vi"' in text
        for one in expected:
            assert one in text, address
