"""The maintenance commands as a user calls them; what stock restic says of the same repository is the judge."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from node_agent.cli import main
from tests.repository import cli_world
from tests.repository.core_world import PASSWORD, flip, restic, stored


class Cli(cli_world.Cli):
    """The same commands in this process, which is ten times as quick; a few tests elsewhere start real ones."""

    def run(self, *args: str, expect: int = 0, **_: Any) -> subprocess.CompletedProcess[bytes]:
        with (
            tempfile.TemporaryFile("w+", errors="surrogateescape") as out,
            tempfile.TemporaryFile("w+", errors="surrogateescape") as errors,
            pytest.MonkeyPatch.context() as patch,
        ):
            for name in [name for name in os.environ if name.startswith(("RESTIC_", "BRS_"))]:
                patch.delenv(name)
            for name, value in self.env.items():
                patch.setenv(name, value)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                code = main(["repo", *args])
            texts = []
            for file in (out, errors):
                file.flush()
                file.seek(0)
                texts.append(file.read().encode(errors="surrogateescape"))
        assert code == expect, (args, code, texts)
        return subprocess.CompletedProcess(args, code, *texts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with three snapshots of a changing folder, and one of something else."""
    top = tmp_path_factory.mktemp("cli")
    cli = Cli(top)
    cli.run("init")
    source = top / "source"
    (source / "a" / "foo").mkdir(parents=True)
    (source / "b").mkdir()
    (source / "a" / "foo" / "bar").write_bytes(os.urandom(70_000))
    (source / "b" / "foo.txt").write_bytes(b"two")
    (source / "FOO").write_bytes(b"three")
    (source / "stays").write_bytes(os.urandom(50_000))
    cli.run("backup", str(source), "--tag", "first,x")
    (source / "b" / "foo.txt").write_bytes(os.urandom(40_000))
    shutil.rmtree(source / "a")
    (source / "c").mkdir()
    (source / "c" / "l").symlink_to("x")
    (source / "b").chmod(0o700)
    cli.run("backup", str(source))
    (source / "FOO").unlink()
    (source / "FOO").mkdir()
    cli.run("backup", str(source))
    (top / "other").mkdir()
    (top / "other" / "file").write_bytes(b"other")
    cli.run("backup", str(top / "other"), "--host", "elsewhere")
    return top


@pytest.fixture
def cli(made: Path, tmp_path: Path) -> Cli:
    shutil.copytree(made / "repo", tmp_path / "repo")
    return Cli(tmp_path)


def _theirs(cli: Cli, *args: str) -> Any:
    return [json.loads(line) for line in restic(cli.repo, *args, "--json").stdout.splitlines() if line[:1] in "[{"]


def _snapshots(cli: Cli) -> list[dict[str, Any]]:
    found = json.loads(restic(cli.repo, "snapshots", "--json").stdout)
    return sorted(found, key=lambda snapshot: snapshot["time"])


def test_diff_says_what_stock_restic_says(cli: Cli) -> None:
    ids = [snapshot["id"] for snapshot in _snapshots(cli)]
    for before, after in ((0, 1), (1, 2), (0, 2), (2, 0), (1, 1), (0, 3)):
        for options in ([], ["--metadata"]):
            theirs = _theirs(cli, "diff", ids[before], ids[after], *options)
            ours = cli.lines("diff", ids[before], ids[after], *options)
            assert ours == theirs
    shown = cli.run("diff", ids[0], ids[1]).stdout.decode()
    assert re.search(r"^M +/.*/b/foo\.txt$", shown, re.MULTILINE) and "1 changed" in shown


@pytest.mark.parametrize(
    "args", [["foo"], ["-i", "foo*"], ["*.txt", "stays"], ["/c/"], ["b/foo.txt"], ["nothing"], ["--tag", "x", "foo"]]
)
def test_find_finds_what_stock_restic_finds(cli: Cli, args: list[str]) -> None:
    if args == ["/c/"]:
        args = [f"{_snapshots(cli)[0]['paths'][0]}/b/foo.txt"]
    (theirs,) = _theirs(cli, "find", *args)
    ours = cli.json("find", *args)

    def comparable(found: list[dict[str, Any]]) -> list[tuple[str, int, list[Any]]]:
        return sorted((one["snapshot"], one["hits"], one["matches"]) for one in found)

    assert comparable(ours) == comparable(theirs)
    assert bool(ours) is (args != ["nothing"])


def test_find_by_time_and_by_blob(cli: Cli) -> None:
    assert cli.json("find", "--newest", "2001-01-01", "*") == []
    assert cli.json("find", "--oldest", "2001-01-01", "stays")
    assert "is not a time" in cli.error("find", "--oldest", "yesterday", "*")
    blobs = [line.split()[1] for line in restic(cli.repo, "list", "blobs").stdout.splitlines() if line[:4] == "data"]
    for blob in blobs:
        (theirs,) = _theirs(cli, "find", "--blob", blob)
        ours = cli.json("find", "--blob", blob[:20])
        assert {use["path"] for use in ours} == {use["path"] for use in theirs}
    tree = _snapshots(cli)[0]["tree"]
    assert cli.json("find", "--tree", tree)[0]["snapshot"] == _snapshots(cli)[0]["id"]


def test_tags_change_as_stock_restic_changes_them(cli: Cli) -> None:
    first = _snapshots(cli)[0]
    told = cli.json("tag", first["id"][:10], "--add", "new,x", "--remove", "first")
    assert told["changed_snapshots"] == 1
    changed = _snapshots(cli)[0]
    assert changed["tags"] == ["x", "new"] and changed["original"] == first["id"]
    assert changed["id"] == told["changed"][0]["new_snapshot_id"] and len(_snapshots(cli)) == 4
    assert cli.json("tag", "--tag", "x", "--set", "")["changed_snapshots"] == 1
    again = _snapshots(cli)[0]
    assert "tags" not in again and again["original"] == first["id"]
    assert cli.json("tag", "--set", "")["changed_snapshots"] == 0
    assert "either set" in cli.error("tag", "--set", "a", "--add", "b")
    restic(cli.repo, "check")


def test_cat_shows_every_kind_of_object(cli: Cli) -> None:
    last = _snapshots(cli)[-1]
    assert json.loads(cli.run("cat", "config").stdout) == json.loads(restic(cli.repo, "cat", "config").stdout)
    assert json.loads(cli.run("cat", "snapshot", "latest").stdout)["tree"] == last["tree"]
    tree = cli.run("cat", "tree", f"{last['id'][:8]}:").stdout
    assert tree == cli.run("cat", "blob", last["tree"]).stdout and b'"nodes"' in tree
    assert json.loads(cli.run("cat", "key", stored(cli.repo, "keys")[0].name).stdout)["kdf"] == "scrypt"
    index = stored(cli.repo, "index")[0].name
    assert json.loads(cli.run("cat", "index", index[:12]).stdout) == json.loads(
        restic(cli.repo, "cat", "index", index).stdout
    )
    pack = stored(cli.repo, "data")[0]
    header = json.loads(cli.run("cat", "pack", pack.name).stdout)
    assert header["size"] == pack.stat().st_size and header["blobs"]
    assert "is not there" in cli.error("cat", "index", "00000000")
    assert "Which snapshot?" in cli.error("cat", "snapshot")
    assert "64 digits" in cli.error("cat", "blob", "abcd")


def test_the_master_key_is_stock_restics_and_comes_with_a_warning(cli: Cli) -> None:
    shown = cli.run("cat", "masterkey")
    assert json.loads(shown.stdout) == json.loads(restic(cli.repo, "cat", "masterkey").stdout)
    assert b"warning" in shown.stderr and b"without any password" in shown.stderr


@pytest.mark.parametrize("kind", ["blobs", "packs", "index", "snapshots", "keys"])
def test_names_are_listed_as_stock_restic_lists_them(cli: Cli, kind: str) -> None:
    theirs = sorted(restic(cli.repo, "list", kind).stdout.splitlines())
    assert theirs
    for options in ([], ["--json"]):  # which changes nothing there either
        assert sorted(cli.run("list", kind, *options).stdout.decode().splitlines()) == theirs


def test_listing_locks_makes_none(cli: Cli) -> None:
    assert cli.run("list", "locks").stdout == b""
    (cli.repo / "locks" / ("ab" * 32)).write_bytes(b"somebody's")
    assert cli.run("list", "locks").stdout.decode() == "ab" * 32 + "\n"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--latest", "1"],
        ["--latest", "2"],
        ["--latest", "0"],
        ["--latest", "-1"],
        ["--last"],
        ["--group-by", "host"],
        ["-g", "paths,tags"],
        ["-g", "host,paths,tags", "--latest", "1"],
        ["-g", "host", "--host", "nowhere"],
        ["--host", "nowhere"],
    ],
    ids=" ".join,
)
def test_snapshots_are_grouped_and_cut_as_stock_restic_does(cli: Cli, options: list[str]) -> None:
    def comparable(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        groups = [
            one["group_key"] | {"ids": [each["id"] for each in one["snapshots"]]} for one in found if "id" not in one
        ]
        return sorted(groups, key=str) or [{"id": one["id"], "tags": one.get("tags")} for one in found]

    ((theirs),) = _theirs(cli, "snapshots", *options)
    assert comparable(cli.json("snapshots", *options)) == comparable(theirs)


def test_snapshots_for_people_have_titles_and_may_be_short(cli: Cli) -> None:
    shown = cli.run("snapshots", "--group-by", "host", "--compact").stdout.decode()
    assert "snapshots for (host [elsewhere]):" in shown and shown.count("ID  ") == 2
    assert "Paths" not in shown and "/source" not in shown and "first,x" in shown
    assert "grouped by 'day'" in cli.error("snapshots", "--group-by", "day")


def test_version_names_the_program(cli: Cli) -> None:
    assert cli.run("version").stdout.startswith(b"BRS 0.")
    assert cli.json("version")["version"] in cli.run("version").stdout.decode()


def test_forget_and_prune_in_one_go_free_the_space(cli: Cli) -> None:
    before = sum(path.stat().st_size for path in stored(cli.repo, "data"))
    planned = cli.run("forget", "-l", "1", "--prune", "--dry-run", "--max-unused", "0").stdout.decode()
    assert "would be freed" in planned and len(_snapshots(cli)) == 4
    groups = cli.json("forget", "--keep-last", "1", "--prune", "--max-unused", "0")
    assert sorted(len(group["keep"]) for group in groups) == [1, 1]
    assert len(_snapshots(cli)) == 2
    assert sum(path.stat().st_size for path in stored(cli.repo, "data")) < before - 60_000
    restic(cli.repo, "check", "--read-data")


def test_forgets_output_for_programs_is_stock_restics(cli: Cli) -> None:
    options = ["--dry-run", "-l", "1", "--keep-within-daily", "2d", "--keep-tag", "first", "-g", "host"]
    (theirs,) = _theirs(cli, "forget", *options)
    ours = cli.json("forget", *options)
    for their, our in zip(sorted(theirs, key=lambda g: g["host"]), sorted(ours, key=lambda g: g["host"]), strict=True):
        assert their.keys() == our.keys()
        for name in ("keep", "remove"):
            assert [s["id"] for s in their[name] or []] == [s["id"] for s in our[name] or []]
        for their_reason, our_reason in zip(their["reasons"], our["reasons"], strict=True):
            # Newer ones than Debian's 0.14 also say so of the oldest, as we do.
            assert their_reason["matches"] == [m for m in our_reason["matches"] if not m.startswith("oldest")]
    compact = cli.run("forget", *options, "--compact").stdout.decode()
    assert "keep 2:" in compact


def test_prune_tells_its_figures_and_refuses_nonsense(cli: Cli) -> None:
    cli.run("forget", "--keep-last", "1")
    planned = cli.json("prune", "--dry-run", "--max-unused", "0")
    done = cli.json("prune", "--max-unused", "0", "--max-repack-size", "1G", "--max-duration", "10m")
    assert planned["dry_run"] and not done["dry_run"] and done["removed_packs"] == planned["removed_packs"]
    assert done["freed_bytes"] > 0
    assert "not a share" in cli.error("prune", "--max-unused", "200%")
    assert "not a duration" in cli.error("prune", "--max-duration", "soon")
    assert "0 B freed" in cli.run("prune", "--max-unused", "0").stdout.decode()


def test_check_reads_a_part_and_remembers_it(cli: Cli) -> None:
    first = cli.json("check", "--read-data-subset", "50%")
    second = cli.json("check", "--max-age", "1d", "--max-duration", "10m")
    assert first["ok"] and second["ok"] and first["read_packs"] + second["read_packs"] == first["packs"]
    assert second["never_read_packs"] == 0
    assert "the time ran out before" in cli.run("check", "--max-duration", "0s").stdout.decode()
    assert "not a part" in cli.error("check", "--read-data-subset", "half")
    assert "a part" in cli.error("check", "--read-data-subset", "1/2", "--read-data")


def test_damage_is_found_named_and_healed_from_a_copy(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    copy = Cli(tmp_path / "new", BRS_REPOSITORY_PASSWORD="another")
    (tmp_path / "password").write_text(PASSWORD + "\n")
    copy.run("init")
    source = ("--from-repo", str(cli.repo), "--from-password-file", str(tmp_path / "password"))
    assert len(copy.json("copy", *source)["copied"]) == 4
    assert len(copy.json("copy", *source)["skipped"]) == 4
    assert "there already" in copy.run("copy", *source, "latest").stdout.decode()
    restic(copy.repo, "check", "--read-data", password="another")

    pack = max(stored(cli.repo, "data"), key=lambda path: path.stat().st_size)
    flip(pack, 1000)
    assert not cli.json("check", "--read-data", expect=1)["ok"]
    hurt = cli.json("repair", "snapshots", "--read-data", expect=1)["hurt"]
    assert hurt and all(file["path"] for one in hurt for file in one["files"])
    said = cli.run("repair", "snapshots", "--read-data", expect=1).stdout.decode()
    assert "bytes are lost" in said

    lost = cli.json("repair", "packs", "--read-data", expect=1)["lost_blobs"]
    assert len(lost) == 1
    (tmp_path / "password").write_text("another\n")
    (tmp_path / "wrong").write_text("wrong")
    other = ("--from", str(copy.repo), "--from-password-file", str(tmp_path / "wrong"))
    assert "(of the repository to read from)" in cli.error("repair", "packs", *other, expect=12)
    healed = cli.json("repair", "packs", "--from", str(copy.repo), "--from-password-file", str(tmp_path / "password"))
    assert healed["healed_blobs"] == 1 and healed["lost_blobs"] == []
    assert cli.json("check", "--read-data")["ok"]
    restic(cli.repo, "check", "--read-data")
    assert cli.run("repair", "snapshots").stdout.decode().endswith("0 of 4 snapshots are hurt\n")


def test_what_cannot_be_healed_is_replaced_by_partial_snapshots(cli: Cli) -> None:
    flip(max(stored(cli.repo, "data"), key=lambda path: path.stat().st_size), 1000)
    told = cli.json("repair", "snapshots", "--read-data", "--forget")["hurt"]
    assert told and all(one["repaired"] and one["forgotten"] for one in told)
    cli.run("repair", "packs", "--read-data")
    assert cli.json("check", "--read-data")["ok"] and len(_snapshots(cli)) == 4
    assert sum("brs.partial" in snapshot.get("tags", []) for snapshot in _snapshots(cli)) == len(told)
    restic(cli.repo, "check", "--read-data")


def test_a_lost_index_is_made_again(cli: Cli) -> None:
    for path in stored(cli.repo, "index"):
        path.unlink()
    assert cli.json("repair", "index", "--dry-run")["changed"]
    assert "was in no index" in cli.run("repair", "index").stdout.decode()
    assert "nothing was changed" in cli.run("repair", "index", "--read-all-packs").stdout.decode()
    restic(cli.repo, "check", "--read-data")


def test_keys_are_added_listed_changed_and_removed(cli: Cli, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("second\n")
    added = cli.json("key", "add", "--new-password-file", str(new))["id"]
    listed = cli.json("key", "list")
    (theirs,) = _theirs(cli, "key", "list")
    assert sorted((k["id"], k["current"], k["created"][:10]) for k in theirs) == sorted(
        (k["id"], k["current"], k["created"][:10]) for k in listed
    )
    new.write_text("third\n")
    second = Cli(tmp_path, BRS_REPOSITORY_PASSWORD="second")
    second.run("key", "passwd", "--new-password-file", str(new))
    assert "No key" in second.error("key", "list", expect=12)
    third = Cli(tmp_path, BRS_REPOSITORY_PASSWORD="third")
    (own,) = [key["id"] for key in third.json("key", "list") if key["current"]]
    assert own != added[:8]
    assert "cannot be removed" in third.error("key", "remove", own)
    cli.run("key", "remove", own)
    assert len(cli.json("key", "list")) == 1
    assert "new password is not given" in cli.error("key", "add")
    restic(cli.repo, "check")


def test_unlock_leaves_fresh_locks_alone_unless_told(cli: Cli) -> None:
    from tests.repository.core_world import open_repo

    repo = open_repo(cli.repo)
    with repo.lock(exclusive=True):
        assert cli.json("unlock")["removed"] == []
        assert "in use" in cli.error("prune", expect=11)
        assert len(cli.json("unlock", "--remove-all")["removed"]) == 1
        cli.run("prune")


def test_the_cache_is_listed_and_what_nobody_uses_goes(cli: Cli) -> None:
    cli.run("snapshots")
    cli.run("check")
    (entry,) = cli.json("cache")["repositories"]
    assert entry["bytes"] > 0 and entry["age_days"] == 0
    assert cli.json("cache", "--cleanup")["removed"] == []
    for path in cli.cache.glob("*.sqlite*"):
        os.utime(path, (1, 1))
    assert cli.json("cache", "--cleanup")["removed"] == [entry["repository"]]
    assert list(cli.cache.glob("*.sqlite*")) == []
    assert cli.json("check")["ok"]
