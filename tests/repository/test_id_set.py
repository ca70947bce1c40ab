"""Sets of ids that lie in a temporary database."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.repository.id_set import IdSet


@given(st.lists(st.binary(min_size=32, max_size=32).map(lambda b: b[:1] * 32), max_size=50))
def test_it_is_a_set(ids: list[bytes]) -> None:
    ours, theirs = IdSet(), set[bytes]()
    for blob_id in ids:
        assert ours.add(blob_id) == (blob_id not in theirs)
        theirs.add(blob_id)
    ours.update(ids)
    assert len(ours) == len(theirs)
    assert [blob_id for batch in ours.batches() for blob_id in batch] == sorted(theirs)
    assert all(blob_id in ours for blob_id in ids)
    assert b"x" * 31 not in ours
    ours.close()


def test_ids_carry_numbers_and_come_in_batches() -> None:
    ids = IdSet(numbers=2)
    for number in range(2500):
        ids.add(number.to_bytes(32, "big"), number, 1 << 60)
    assert ids.numbers((7).to_bytes(32, "big")) == (7, 1 << 60)
    assert ids.numbers(b"none") is None
    assert [len(batch) for batch in ids.batches()] == [1000, 1000, 500]
