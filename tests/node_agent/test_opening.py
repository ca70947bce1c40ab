"""A task's repository: its store is closed with it, whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.errors import BrsError, RepositoryError, WrongPassword
from node_agent.repository.backend.local import LocalBackend
from node_agent.tasks import opening
from tests.node_agent.test_machines import Bench, bench  # noqa: F401 - a fixture
from tests.repository.core_world import PASSWORD, new_repo


class _Store(LocalBackend):
    closed = 0

    def close(self) -> None:
        type(self).closed += 1


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("wrong", ["", "password", "repository", "work"])
def test_the_store_is_closed(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
    limit: int,
) -> None:
    folder = tmp_path / "store"
    repo = new_repo(folder)
    monkeypatch.setattr(opening, "open_store", lambda *_: _Store(folder))
    monkeypatch.setattr(_Store, "closed", 0)
    context = bench.context()
    access = bench.place.access().model_copy(
        update={
            "password": "not it" if wrong == "password" else PASSWORD,
            "repository_id": "f" * 64 if wrong == "repository" else repo.id,
        }
    )
    expected: dict[str, type[BaseException]] = {
        "password": WrongPassword,
        "repository": RepositoryError,
        "work": BrsError,
    }
    if not wrong:
        with opening.opened(context, access, limit):
            assert _Store.closed == 0
    else:
        with pytest.raises(expected[wrong]), opening.opened(context, access, limit):
            raise BrsError("the work fails")
    assert _Store.closed == 1
