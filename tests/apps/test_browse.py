"""Lists of files: kept by tree id, read by path, searched, dropped."""

from __future__ import annotations

import uuid

import pytest

from apps.catalog import browse
from apps.catalog.models import Directory
from apps.errors import Invalid, NotFound
from node_agent import protocol
from node_agent.protocol import Entry


def tree() -> str:
    return uuid.uuid4().hex * 2


def directory(tree_id: str, *entries: Entry, part: int = 0, last: bool = True) -> protocol.Directory:
    return protocol.Directory(tree_id=tree_id, entries=list(entries), part=part, last=last)


@pytest.fixture
def copy(world):
    """/a.txt, /docs/ (letters/, "odd \\xff.txt", plan.txt) and /docs/letters/ (plan b.txt)."""
    found = world.alpha.copy
    docs, letters = tree(), tree()
    browse.add(
        world.alpha.repository,
        [
            directory(
                found.tree_id, Entry(name="a.txt", type="file", size=3), Entry(name="docs", type="dir", tree=docs)
            ),
            directory(
                docs,
                Entry(name="plan.txt", type="file", size=10, mode=0o640, user="ann", mtime="2026-01-01T00:00:00Z"),
                Entry(name=r"odd \xff.txt", type="file", size=1),
                Entry(name="letters", type="dir", tree=letters),
            ),
            directory(letters, Entry(name=r"say \"hi\" \\o.txt", type="file"), Entry(name="Plan B.txt", type="file")),
        ],
    )
    return found


def test_a_directory_is_listed_folders_first(copy):
    found = browse.listing(copy, "/docs")
    assert found.complete
    assert [(item.name, item.type) for item in found.entries] == [
        ("letters", "dir"),
        (r"odd \xff.txt", "file"),
        ("plan.txt", "file"),
    ]
    plan = found.entries[2]
    assert (plan.path, plan.size, plan.mode, plan.user) == ("/docs/plan.txt", 10, 0o640, "ann")


def test_names_are_readable_and_paths_stay_as_the_tree_has_them(copy):
    item = next(one for one in browse.listing(copy, "/docs/letters/").entries if "say" in one.name)
    assert item.name == r'say "hi" \o.txt'
    assert item.path == r"/docs/letters/say \"hi\" \\o.txt"
    assert browse.find(copy, item.path) == item


def test_the_root_lists_with_and_without_a_slash(copy):
    assert browse.listing(copy).entries == browse.listing(copy, "/").entries
    assert browse.find(copy, "/").is_directory


def test_what_is_not_there_is_said_and_what_is_not_known_is_none(copy):
    with pytest.raises(NotFound, match="/docs/absent"):
        browse.listing(copy, "/docs/absent/deeper")
    with pytest.raises(NotFound):
        browse.listing(copy, "/a.txt")
    with pytest.raises(NotFound, match="nothing"):
        browse.find(copy, "/docs/nothing.txt")
    copy.tree_id = tree()
    assert browse.listing(copy, "/docs") is None
    assert browse.find(copy, "/docs/plan.txt") is None


@pytest.mark.parametrize("path", ["docs", "/docs/../..", "/a\x00b", ""])
def test_a_path_that_climbs_or_is_no_path_is_refused(copy, path):
    with pytest.raises(Invalid):
        browse.listing(copy, path)


def test_only_directories_that_are_not_wholly_known_are_wanted(world, copy):
    half, unknown = tree(), tree()
    browse.add(world.alpha.repository, [directory(half, Entry(name="x", type="file"), last=False)])
    assert browse.missing(world.alpha.repository, [copy.tree_id, half, unknown, half]) == [half, unknown]
    browse.add(world.alpha.repository, [directory(half, Entry(name="y", type="file"), part=1)])
    assert browse.missing(world.alpha.repository, [half]) == []


def test_a_last_part_without_the_ones_before_it_is_not_known(world, copy):
    tree_id = tree()
    browse.add(world.alpha.repository, [directory(tree_id, part=2)])
    copy.tree_id = tree_id
    assert browse.missing(world.alpha.repository, [tree_id]) == [tree_id]
    assert browse.listing(copy) is None


def test_a_directory_in_parts_is_listed_as_one(world, copy):
    copy.tree_id = tree()
    for part in range(3):
        entries = [Entry(name=f"{part}-{n}", type="file") for n in range(4)]
        browse.add(world.alpha.repository, [directory(copy.tree_id, *entries, part=part, last=part == 2)])
    assert len(browse.listing(copy).entries) == 12


def test_sending_a_directory_twice_keeps_it_once(world, copy):
    before = Directory.objects.count()
    browse.add(world.alpha.repository, [directory(copy.tree_id, Entry(name="other", type="file"))])
    assert Directory.objects.count() == before
    assert [item.name for item in browse.listing(copy).entries] == ["docs", "a.txt"]


def test_lists_of_one_repository_are_unknown_in_another(world, copy):
    assert browse.missing(world.beta.repository, [copy.tree_id]) == [copy.tree_id]


def test_a_tree_id_that_is_none_is_refused(world):
    with pytest.raises(Invalid):
        browse.missing(world.alpha.repository, ["../../etc"])


def test_search_finds_readable_names_in_every_folder_whatever_their_case(copy):
    found = browse.search(copy, "PLAN")
    assert found.complete
    assert [item.path for item in found.entries] == ["/docs/plan.txt", "/docs/letters/Plan B.txt"]
    assert [item.name for item in browse.search(copy, '"hi"').entries] == [r'say "hi" \o.txt']


def test_search_says_when_it_stopped_or_could_not_look_everywhere(world, copy):
    assert not browse.search(copy, "t", limit=1).complete
    assert len(browse.search(copy, "t", limit=1).entries) == 1
    assert not browse.search(copy, "plan", directories=1).complete
    Directory.objects.filter(tree_id=browse.find(copy, "/docs/letters").tree).delete()
    assert not browse.search(copy, "plan").complete


def test_lists_that_no_point_leads_to_are_dropped_and_the_others_stay(world, copy):
    forgotten = tree()
    browse.add(world.alpha.repository, [directory(forgotten, Entry(name="secret name", type="file"))])
    assert browse.drop_unused(world.alpha.repository) == 1
    assert not Directory.objects.filter(tree_id=forgotten).exists()
    assert browse.search(copy, "plan").complete
    copy.delete()
    browse.drop_unused(world.alpha.repository)
    assert not Directory.objects.exists()
