"""Options and variables that administrators bring along from restic: same outcome, proven against stock restic."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from node_agent.cli import build_parser
from node_agent.cli_options import shared_options
from node_agent.repository.backend.limits import Bandwidth, bandwidth_of
from node_agent.repository.backend.settings import Settings
from tests.contracts.backend_peers import RcloneRest
from tests.node_agent.certificates import Authority
from tests.repository.cli_world import Cli
from tests.repository.core_world import PASSWORD, open_repo, restic, stored

MIB = 1 << 20


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.run("init")
    return cli


def stock(cli: Cli, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Stock restic with nothing of the environment but what is named."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(cli.cache), "XDG_CACHE_HOME": str(cli.cache)}
    return subprocess.run(["restic", *args], env=kept | env, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def both_end(cli: Cli, expect: int, *args: str, **env: str) -> None:
    """``snapshots`` with these options ends alike in BRS and in stock restic."""
    theirs = stock(cli, *args, "snapshots", **env)
    assert (theirs.returncode != 0) == (expect != 0), theirs.stderr
    for name in ("RESTIC_REPOSITORY", "BRS_REPOSITORY_PASSWORD"):
        cli.env.pop(name, None)
    before = dict(cli.env)
    cli.env |= env
    cli.run(*args, "snapshots", expect=expect)
    cli.env = before


def test_the_repository_may_stand_in_a_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "where"
    file.write_text(f"  {cli.repo}\n")
    both_end(cli, 0, "--repository-file", str(file), RESTIC_PASSWORD=PASSWORD)
    both_end(cli, 0, RESTIC_REPOSITORY_FILE=str(file), RESTIC_PASSWORD=PASSWORD)
    both_end(cli, 1, "--repository-file", str(file), "--repo", str(cli.repo), RESTIC_PASSWORD=PASSWORD)
    both_end(cli, 1, "--repository-file", str(tmp_path / "gone"), RESTIC_PASSWORD=PASSWORD)
    both_end(cli, 1, RESTIC_REPOSITORY_FILE=str(file), RESTIC_REPOSITORY=str(cli.repo), RESTIC_PASSWORD=PASSWORD)


@pytest.mark.parametrize(
    ("command", "expect"),
    [
        (f"echo '{PASSWORD} '", 0),
        (f'printf "%s" "{PASSWORD}"', 0),
        ("false", 1),
        ("/nonexistent/program", 1),
        ("true", 1),
        ("echo 'unclosed", 1),
    ],
)
def test_a_program_may_print_the_password(cli: Cli, command: str, expect: int) -> None:
    both_end(cli, expect, "--repo", str(cli.repo), "--password-command", command)
    both_end(cli, expect, "--repo", str(cli.repo), RESTIC_PASSWORD_COMMAND=command)


def test_a_password_file_and_a_command_are_one_too_many(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    both = ("--password-file", str(file), "--password-command", f"echo '{PASSWORD}'")
    both_end(cli, 1, "--repo", str(cli.repo), *both)
    cli.env["RESTIC_PASSWORD_FILE"] = "/nonexistent"  # an option goes before a variable; restic refuses here
    cli.run("--repo", str(cli.repo), "--password-command", f"echo '{PASSWORD}'", "snapshots")


def test_the_password_command_is_asked_once(cli: Cli, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script = tmp_path / "ask"
    script.write_text(f"#!/bin/sh\necho x >> {asked}\necho '{PASSWORD}'\n")
    script.chmod(0o755)
    del cli.env["BRS_REPOSITORY_PASSWORD"]
    cli.run("key", "list", "--password-command", str(script))
    assert asked.read_text() == "x\n"


def test_the_hinted_key_is_tried_first(cli: Cli, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("second password")
    cli.run("key", "add", "--new-password-file", str(new))
    keys = {entry["name"]: entry["current"] for entry in cli.json("key", "list")}
    mine = next(name for name, current in keys.items() if current)
    other = next(name for name in keys if name != mine)
    for hint, first in ((mine, mine), (other, other), (mine[:8], mine)):
        cli.env["RESTIC_KEY_HINT"] = hint
        said = cli.run("-vv", "snapshots").stderr.decode()
        tried = [line.split()[2].rstrip(",") for line in said.splitlines() if line.startswith("get keys ")]
        assert tried[0] == first and f"opened by key {mine[:8]}" in said
    both_end(cli, 0, "--repo", str(cli.repo), "--key-hint", "zzzz", RESTIC_PASSWORD=PASSWORD)


def test_reading_needs_no_lock_and_changing_does(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    cli.run("backup", str(file))
    theirs = ("-r", str(cli.repo), "--no-lock")
    with open_repo(cli.repo) as repo, repo.lock(exclusive=True):
        cli.run("snapshots", expect=11)
        for command in (
            ["snapshots"],
            ["ls", "latest"],
            ["check"],
            ["stats"],
            ["restore", "latest", "--target", str(tmp_path / "out")],
            ["forget", "--keep-last", "1", "--dry-run"],
            ["prune", "--dry-run"],
            ["key", "list"],
        ):
            cli.run("--no-lock", *command)
        assert stock(cli, *theirs, "snapshots", RESTIC_PASSWORD=PASSWORD).returncode == 0
        for command in (
            ["backup", str(file)],
            ["forget", "--keep-last", "1"],
            ["prune"],
            ["tag", "--add", "x"],
            ["key", "add", "--new-password-file", str(file)],
        ):
            assert "--no-lock" in cli.error("--no-lock", *command)
        assert stock(cli, *theirs, "forget", "--keep-last", "1", RESTIC_PASSWORD=PASSWORD).returncode == 1
        assert len(stored(cli.repo, "locks")) == 1


def test_copy_without_a_lock_locks_its_target_only(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    cli.run("backup", str(tmp_path / "file"))
    place = tmp_path / "where"
    place.write_text(str(cli.repo))
    (tmp_path / "target").mkdir()
    target = Cli(tmp_path / "target", RESTIC_FROM_PASSWORD_COMMAND=f"echo '{PASSWORD}'")
    target.run("init")
    command = ("copy", "--from-repository-file", str(place))
    with open_repo(cli.repo) as repo, repo.lock(exclusive=True):
        target.run(*command, expect=11)
        target.run(*command, "--no-lock")
    assert len(target.json("snapshots")) == 1
    restic(target.repo, "check", "--read-data")
    with open_repo(target.repo) as repo, repo.lock(exclusive=True):
        target.run(*command, "--no-lock", expect=11)


@pytest.mark.parametrize("mib", [4, 32])
def test_packs_are_as_large_as_asked(cli: Cli, tmp_path: Path, mib: int) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3 * mib * MIB // 2))
    cli.run("backup", str(tmp_path / "file"), "--pack-size", str(mib))
    sizes = sorted(path.stat().st_size for path in stored(cli.repo, "data"))
    assert mib * MIB <= sizes[-1] < (mib + 9) * MIB
    restic(cli.repo, "check", "--read-data")


def test_prune_makes_packs_as_large_as_asked(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(12 * MIB))
    cli.run("backup", str(tmp_path / "file"), "--pack-size", "4")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[: 11 * MIB])
    cli.run("backup", str(tmp_path / "file"), "--pack-size", "4")
    cli.env["RESTIC_PACK_SIZE"] = "64"
    cli.run("forget", "--keep-last", "1", "--prune", "--max-unused", "0")
    restic(cli.repo, "check", "--read-data")


@pytest.mark.parametrize("size", ["3", "129", "0"])
def test_impossible_pack_sizes_are_refused(cli: Cli, tmp_path: Path, size: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert "4 to 128" in cli.error("backup", str(tmp_path / "file"), "--pack-size", size)
    theirs = stock(cli, "-r", str(cli.repo), "backup", str(tmp_path / "file"), RESTIC_PACK_SIZE=size,
                   RESTIC_PASSWORD=PASSWORD)  # fmt: skip
    assert (theirs.returncode == 1) == (size != "0")  # which restic takes for: not given


def test_limits_are_kibibytes_a_second(cli: Cli, tmp_path: Path) -> None:
    given = build_parser().parse_args(
        ["repo", "--repo", "/x", "--limit-upload", "100", "snapshots", "--limit-download=-1"]
    )
    settings = Settings("local", {}, {}, shared_options(given))
    assert bandwidth_of(settings) == Bandwidth(upload=100 << 10, download=0)
    (tmp_path / "file").write_bytes(b"content")
    cli.run("backup", str(tmp_path / "file"), "--limit-upload", "100000", "--limit-download", "100000")
    both_end(cli, 0, "--repo", str(cli.repo), "--limit-upload", "1000", RESTIC_PASSWORD=PASSWORD)


def test_a_store_with_a_strange_certificate_opens_with_cacert_or_a_loud_warning(cli: Cli, tmp_path: Path) -> None:
    pem = Authority(tmp_path / "ca")
    (tmp_path / "ca.pem").write_text(pem.pem)
    server = str(pem.issue("server"))
    rest = RcloneRest(tmp_path, "--cert", server, "--key", server, scheme="https")
    try:
        place = rest.place()
        cli.env |= place.env | {"RESTIC_REPOSITORY": place.url}
        assert "not trusted" in cli.error("init")
        cli.run("init", "--cacert", str(tmp_path / "ca.pem"))
        said = cli.run("snapshots", "--insecure-tls").stderr.decode()
        assert said.startswith("WARNING: --insecure-tls") and rest.password not in said
        assert b"WARNING" not in cli.run("snapshots", "--cacert", str(tmp_path / "ca.pem")).stderr
        cli.env["RESTIC_CACERT"] = str(tmp_path / "ca.pem")
        cli.run("snapshots")
    finally:
        rest.stop()


def test_a_folder_has_no_certificate_and_takes_the_options(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(Authority(tmp_path / "ca").pem)
    both_end(
        cli,
        0,
        "--repo",
        str(cli.repo),
        "--insecure-tls",
        "--cacert",
        str(tmp_path / "ca.pem"),
        RESTIC_PASSWORD=PASSWORD,
    )


def test_a_lock_is_waited_for_as_long_as_asked(cli: Cli) -> None:
    assert "not a duration" in cli.error("snapshots", "--retry-lock", "soon")
    cli.run("snapshots", "--retry-lock", "0")
    cli.run("snapshots", "--retry-lock", "1m30s")


def test_restics_variable_says_where_the_cache_is(cli: Cli, tmp_path: Path) -> None:
    del cli.env["BRS_CACHE_DIR"]
    cli.env["RESTIC_CACHE_DIR"] = str(tmp_path / "theirs")
    cli.run("check")
    assert list((tmp_path / "theirs" / "brs").glob("*.sqlite"))


def test_old_caches_go_when_asked(cli: Cli) -> None:
    cli.run("check")
    old, young = cli.cache / f"{'0' * 32}.index.sqlite", cli.cache / f"{'1' * 32}.index.sqlite"
    for path in (old, young):
        path.write_bytes(b"")
    past = time.time() - 31 * 86400
    os.utime(old, (past, past))
    cli.run("snapshots")
    assert old.exists()
    cli.run("snapshots", "--cleanup-cache")
    assert not old.exists() and young.exists()


def test_more_words_tell_which_repository_and_each_request(cli: Cli) -> None:
    assert cli.run("snapshots").stderr == b""
    for form in ("-v", "--verbose", "--verbose=1"):
        said = cli.run(form, "snapshots").stderr.decode()
        assert "opened by key" in said and "list snapshots" not in said
    for form in ("-vv", "--verbose=2", "--verbose=3"):
        assert "list snapshots" in cli.run("snapshots", form).stderr.decode()
    both_end(cli, 1, "--repo", str(cli.repo), "-q", "-v", RESTIC_PASSWORD=PASSWORD)
