from __future__ import annotations

import json
from pathlib import Path

import pytest

from node_agent.errors import DamagedError, RepositoryError, RepositoryMissing, WrongPassword
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.crypto import Key
from node_agent.repository.keys import MAX_OWN_KEYS, add_key, open_master_key
from tests.repository.core_world import FAST, flip, stored


@pytest.fixture
def backend(tmp_path: Path):
    backend = open_backend(str(tmp_path))
    backend.create()
    return backend


def test_each_password_opens_the_same_master_key(backend) -> None:
    master = Key.random()
    names = {add_key(backend, master, password, FAST) for password in ("one", "two", "größer\udcff")}
    assert len(names) == 3
    for password in ("one", "two", "größer\udcff"):
        assert open_master_key(backend, password).master == master


def test_a_wrong_password_is_said_to_be_one(backend) -> None:
    add_key(backend, Key.random(), "right", FAST)
    with pytest.raises(WrongPassword):
        open_master_key(backend, "wrong")


def test_without_keys_there_is_no_repository(backend) -> None:
    with pytest.raises(RepositoryMissing):
        open_master_key(backend, "any")


@pytest.mark.parametrize("field", ["salt", "data", "N", "kdf"])
def test_a_damaged_only_key_is_named_instead_of_blaming_the_password(backend, tmp_path: Path, field: str) -> None:
    name = add_key(backend, Key.random(), "right", FAST)
    path = tmp_path / "keys" / name
    flip(path, path.read_bytes().index(f'"{field}":'.encode()) + len(field) + 5)
    with pytest.raises(DamagedError, match=name):
        open_master_key(backend, "right")


def test_a_damaged_key_beside_a_good_one_does_no_harm(backend, tmp_path: Path) -> None:
    master = Key.random()
    bad = add_key(backend, master, "bad", FAST)
    add_key(backend, master, "good", FAST)
    path = tmp_path / "keys" / bad
    flip(path, path.read_bytes().index(b'"salt":"') + 12)
    assert open_master_key(backend, "good").master == master
    with pytest.raises(WrongPassword, match=bad):  # it may be the one; the message tells of it
        open_master_key(backend, "bad")


def test_a_flip_in_a_field_that_means_nothing_still_opens(backend, tmp_path: Path) -> None:
    name = add_key(backend, Key.random(), "right", FAST)
    path = tmp_path / "keys" / name
    flip(path, path.read_bytes().index(b'"username":"') + 13)
    open_master_key(backend, "right")  # a check names it, see test_check


@pytest.mark.parametrize(
    "changes",
    [{"N": 1 << 40}, {"p": 1 << 30}, {"N": 3}, {"r": 0}, {"kdf": "md5"}, {"salt": "*"}, {"N": float("inf")}, {"p": []}],
)
def test_a_hostile_key_file_is_refused_at_once(backend, tmp_path: Path, changes: dict[str, object]) -> None:
    name = add_key(backend, Key.random(), "right", FAST)
    path = tmp_path / "keys" / name
    value = json.loads(path.read_bytes())
    path.chmod(0o600)
    path.write_text(json.dumps(value | changes))
    with pytest.raises(DamagedError, match=name):
        open_master_key(backend, "right")


def test_a_key_file_nested_without_end_is_refused(backend, tmp_path: Path) -> None:
    backend.put(Kind.KEY, "ab" * 32, [b"[" * 60_000])
    with pytest.raises(DamagedError, match="ab" * 32):
        open_master_key(backend, "any")


def test_no_more_keys_are_made_than_stock_restic_tries(backend) -> None:
    master = Key.random()
    for number in range(MAX_OWN_KEYS):
        add_key(backend, master, f"{number}", FAST)
    with pytest.raises(RepositoryError, match="16"):
        add_key(backend, master, "one too many", FAST)
    assert len(stored(Path(backend.url.removeprefix("local:")), "keys")) == MAX_OWN_KEYS
