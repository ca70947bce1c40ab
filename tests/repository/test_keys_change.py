from __future__ import annotations

import os
from pathlib import Path

import pytest

from node_agent.errors import RepositoryError, WrongPassword
from node_agent.repository.backend import open_backend
from node_agent.repository.keys import add_key, change_password, list_keys, open_master_key, remove_key
from tests.repository.core_world import FAST, PASSWORD, flip, new_repo, open_repo, restic, stored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_repo(tmp_path / "repo")
    return tmp_path / "repo"


def test_keys_are_listed_with_who_made_them_and_what_is_wrong_with_them(folder: Path) -> None:
    backend = open_backend(str(folder))
    added = add_key(backend, open_master_key(backend, PASSWORD).master, "second", FAST)
    found = {key.name: key for key in list_keys(backend)}
    assert len(found) == 2 and found[added].hostname == os.uname().nodename and found[added].created
    flip(folder / "keys" / added, 30)
    assert {key.name: bool(key.damaged) for key in list_keys(backend)}[added]


def test_a_key_is_removed_but_never_the_one_that_opened(folder: Path) -> None:
    backend = open_backend(str(folder))
    opened = open_master_key(backend, PASSWORD)
    added = add_key(backend, opened.master, "second", FAST)
    with pytest.raises(RepositoryError, match="cannot be removed"):
        remove_key(backend, opened.name, current=opened.name)
    with pytest.raises(RepositoryError, match="is no key"):
        remove_key(backend, "zz", current=opened.name)
    with pytest.raises(RepositoryError, match="is no key"):
        remove_key(backend, "", current=opened.name)
    assert remove_key(backend, added[:12], current=opened.name) == added
    with pytest.raises(WrongPassword):
        open_master_key(backend, "second")
    restic(folder, "snapshots")


def test_a_changed_password_opens_and_the_old_one_does_not(folder: Path) -> None:
    backend = open_backend(str(folder))
    change_password(backend, open_master_key(backend, PASSWORD), "changed")
    restic(folder, "check", password="changed")
    with pytest.raises(WrongPassword):
        open_master_key(backend, PASSWORD)
    assert len(list_keys(backend)) == 1


def test_the_password_can_be_changed_while_there_are_as_many_keys_as_may_be(folder: Path) -> None:
    backend = open_backend(str(folder))
    opened = open_master_key(backend, PASSWORD)
    for number in range(15):
        add_key(backend, opened.master, str(number), FAST)
    with pytest.raises(RepositoryError, match="16 keys"):
        add_key(backend, opened.master, "one more", FAST)
    change_password(backend, opened, "changed")
    assert len(list_keys(backend)) == 16
    restic(folder, "snapshots", password="changed")


def test_unlock_clears_what_was_left_behind_and_spares_who_works(folder: Path) -> None:
    repo = open_repo(folder)
    with repo.lock():
        theirs = open_repo(folder)
        with theirs.lock():
            old = next(path for path in stored(folder, "locks"))
            os.utime(old, (1, 1))
            assert [lock.info.name for lock in repo.unlock()] == [old.name]
            assert len(stored(folder, "locks")) == 1
            assert len(repo.unlock(everything=True)) == 1
            assert stored(folder, "locks") == []
