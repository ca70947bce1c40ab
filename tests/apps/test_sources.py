"""What a workload's source may say, and what lies below a node's roots."""

from __future__ import annotations

import pytest

from apps.errors import Invalid
from apps.inventory import sources
from apps.inventory.models import Node
from apps.inventory.sources import InvalidSource


def test_a_files_source_is_kept_in_normal_form():
    assert sources.clean("files", {"paths": ["/srv//data/", "/etc/./ssl"], "excludes": [" *.tmp ", ""]}) == {
        "paths": ["/etc/ssl", "/srv/data"],
        "excludes": ["*.tmp"],
    }


def test_an_image_source_gets_its_defaults():
    assert sources.clean("image", {"path": "/vm/a.qcow2"}) == {"path": "/vm/a.qcow2", "format": "", "disk": "disk"}


def test_names_that_are_not_ascii_are_fine_in_paths():
    assert sources.clean("files", {"paths": ["/srv/dữ liệu"]})["paths"] == ["/srv/dữ liệu"]


@pytest.mark.parametrize(
    ("kind", "source", "field"),
    [
        ("files", {}, "paths"),
        ("files", {"paths": []}, "paths"),
        ("files", {"paths": "/srv"}, "paths"),
        ("files", {"paths": [7]}, "paths"),
        ("files", {"paths": ["srv"]}, "paths"),
        ("files", {"paths": [""]}, "paths"),
        ("files", {"paths": ["/srv/../etc"]}, "paths"),
        ("files", {"paths": ["/srv/.."]}, "paths"),
        ("files", {"paths": ["/srv\x00/etc"]}, "paths"),
        ("files", {"paths": ["/\ud800"]}, "paths"),
        ("files", {"paths": ["/" + "x" * 5000]}, "paths"),
        ("files", {"paths": ["/srv", "/srv/data"]}, "paths"),
        ("files", {"paths": [f"/{n}" for n in range(101)]}, "paths"),
        ("files", {"paths": ["/srv"], "excludes": ["a\nb"]}, "excludes"),
        ("files", {"paths": ["/srv"], "one_file_system": "yes"}, "one_file_system"),
        ("files", {"paths": ["/srv"], "command": "rm"}, "command"),
        ("image", {}, "path"),
        ("image", {"path": None}, "path"),
        ("image", {"path": "/a", "format": "vmdk"}, "format"),
        ("image", {"path": "/a", "disk": "../x"}, "disk"),
        ("image", {"path": "/a", "disk": ".."}, "disk"),
        ("image", {"path": "/a", "paths": ["/b"]}, "paths"),
        ("image", [], "source"),
    ],
)
def test_a_bad_source_is_refused_and_the_field_named(kind, source, field):
    with pytest.raises(InvalidSource) as refused:
        sources.clean(kind, source)
    assert refused.value.field == field
    assert refused.value.message


@pytest.mark.parametrize(
    ("path", "roots", "inside"),
    [
        ("/srv/a", ["/srv"], True),
        ("/srv", ["/srv/"], True),
        ("/srvx", ["/srv"], False),
        ("/a", ["/"], True),
        ("/a", [], False),
        ("/b/c", ["/a", "/b/c"], True),
    ],
)
def test_below_a_root_means_the_whole_name(path, roots, inside):
    assert sources.is_below(path, roots) is inside


def test_a_path_outside_of_the_nodes_roots_is_refused_with_what_is_allowed():
    node = Node(name="n1", roots={"read": [], "write": ["/restore"], "repositories": []})
    sources.require_roots(node, "write", ["/restore/x"])
    with pytest.raises(Invalid, match="n1 may not write to “/etc”") as refused:
        sources.require_roots(node, "write", ["/restore/x", "/etc"])
    assert "/restore" in refused.value.hint and "node.toml" in refused.value.hint


def test_a_node_that_never_told_its_roots_decides_itself():
    sources.require_roots(Node(name="n1", roots={}), "write", ["/anything"])
