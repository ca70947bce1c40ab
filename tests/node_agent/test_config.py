"""node.toml is typed and loud; the guard decides by what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.cli import main
from node_agent.config import RootsConfig, load
from node_agent.errors import ConfigError, RefusedError
from node_agent.guard import Guard


def test_without_a_file_a_node_may_only_touch_its_own_data(tmp_path: Path) -> None:
    config = load(None, tmp_path)
    assert config.roots.read == config.roots.write == [str(tmp_path / "data")]
    assert config.roots.repositories == [str(tmp_path / "repositories")]
    assert config.commands == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slots = 0", "slots"),
        ("slots = 'two'", "slots"),
        ("slot = 2", "slot: there is no such entry"),
        ("[roots]\nread = ['relative']", "roots.read.0: must be an absolute path"),
        ("[roots]\nreads = ['/a']", "roots.reads: there is no such entry"),
        ("labels = ['zone']", "must look like key:value"),
        ("log_level = 'loud'", "log_level"),
        ("slots = ", "not valid TOML"),
        ("staging = 'here'", "absolute path"),
    ],
)
def test_a_wrong_entry_is_named_with_file_and_place(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "node.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(None, tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path / "node.toml") in str(caught.value)
    assert caught.value.hint


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "nothing.toml", tmp_path)


def test_the_config_command_shows_what_holds_and_which_roots_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.toml").write_text(f"[roots]\nread = ['{tmp_path}', '/nonexistent/x']")
    assert main(["config", "--state", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "/nonexistent/x   (missing)" in shown and str(tmp_path) in shown


def guard(tmp_path: Path, **roots: list[Path]) -> Guard:
    named = {kind: [str(path) for path in paths] for kind, paths in roots.items()}
    return Guard(RootsConfig(**named), own=[tmp_path / "state"])


def test_a_root_allows_itself_and_what_lies_below_and_nothing_that_only_looks_like_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    g = guard(tmp_path, read=[tmp_path / "data"])
    assert g.read(str(tmp_path / "data")) == tmp_path / "data"
    assert g.read(str(tmp_path / "data" / "deep" / "er"))
    for bad in (tmp_path / "database", tmp_path / "data" / ".." / "other", tmp_path):
        with pytest.raises(RefusedError) as caught:
            g.read(str(bad))
        assert "node.toml" in caught.value.hint


def test_reading_does_not_allow_writing_or_the_other_way_round(tmp_path: Path) -> None:
    g = guard(tmp_path, read=[tmp_path / "r"], write=[tmp_path / "w"])
    with pytest.raises(RefusedError):
        g.write(str(tmp_path / "r" / "x"))
    with pytest.raises(RefusedError):
        g.read(str(tmp_path / "w" / "x"))
    with pytest.raises(RefusedError):
        g.repository(str(tmp_path / "w" / "x"))


def test_nothing_is_restored_into_repositories_or_the_nodes_own_state(tmp_path: Path) -> None:
    g = guard(tmp_path, write=[tmp_path], repositories=[tmp_path / "backup"])
    assert g.write(str(tmp_path / "ok"))
    for closed in ("backup", "backup/t/data", "state", "state/token"):
        with pytest.raises(RefusedError, match="belongs to the node itself"):
            g.write(str(tmp_path / closed))


def test_a_write_root_inside_the_state_folder_is_what_the_default_is(tmp_path: Path) -> None:
    g = guard(tmp_path, write=[tmp_path / "state" / "data"])
    assert g.write(str(tmp_path / "state" / "data" / "x"))
    with pytest.raises(RefusedError):
        g.write(str(tmp_path / "state" / "token"))


def test_a_root_that_is_a_link_means_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    g = guard(tmp_path, read=[tmp_path / "root"])
    assert g.read(str(tmp_path / "root" / "x")) == tmp_path / "real" / "x"


def test_the_local_scheme_of_an_address_is_understood_and_guarded(tmp_path: Path) -> None:
    g = guard(tmp_path, repositories=[tmp_path / "b"])
    assert g.repository(f"local:{tmp_path}/b/t") == str(tmp_path / "b" / "t")
    with pytest.raises(RefusedError):
        g.repository("local:/etc")
    with pytest.raises(RefusedError):
        g.repository("s3:bucket")
