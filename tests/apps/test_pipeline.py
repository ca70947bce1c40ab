"""A job's way as people see it: what is shown as done is done."""

from __future__ import annotations

import pytest

from apps.jobs import watching
from apps.jobs.models import Job, State, Task
from apps.jobs.pipeline import pipeline


def task(kind: str = "backup", state: str = State.RUNNING, phase: str = "store", **figures) -> Task:
    told = {"total_bytes": 1000, "done_bytes": 300, "exported_bytes": 700, "rate_bytes_s": 100} | figures
    return Task(job=Job(), kind=kind, state=state, phase=phase, progress=told)


def test_a_stream_is_read_and_stored_at_once_each_with_its_own_bar():
    export, store = pipeline([task()])
    assert (export.state, export.percent, export.eta_s) == ("running", 70, None)
    assert (store.state, store.percent, store.eta_s) == ("running", 30, 7)


def test_export_is_complete_when_all_is_read_and_store_still_runs():
    export, store = pipeline([task(exported_bytes=1000)])
    assert (export.state, export.percent) == ("succeeded", 100)
    assert (store.state, store.percent) == ("running", 30)


def test_before_the_first_byte_is_stored_the_store_waits():
    export, store = pipeline([task(phase="export", done_bytes=0, exported_bytes=0)])
    assert (export.state, store.state) == ("running", "queued")


def test_an_older_node_that_tells_no_export_is_not_said_to_have_read_all():
    export, _store = pipeline([task(exported_bytes=0)])
    assert (export.state, export.percent) == ("running", 0)


@pytest.mark.parametrize("phase", ["index", "immutability", "store"])
def test_what_comes_after_the_data_is_part_of_the_store(phase):
    export, store = pipeline([task(phase=phase, exported_bytes=1000)])
    assert (export.state, store.state) == ("succeeded", "running")


def test_a_task_that_has_said_nothing_yet_is_at_its_first_phase():
    export, store = pipeline([task(phase="", done_bytes=0, exported_bytes=0)])
    assert (export.state, store.state) == ("running", "queued")


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.PARTIAL, State.FAILED, State.CANCELLED])
def test_the_end_is_the_end_of_both(end):
    assert [stage.state for stage in pipeline([task(state=end)])] == [end, end]


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED])
def test_what_never_began_did_not_fail(end):
    assert [stage.state for stage in pipeline([task(state=end, phase="export")])] == [end, "unbegun"]
    assert [stage.state for stage in pipeline([task("restore", end, phase="restore")])] == [end, "unbegun"]
    assert [stage.state for stage in pipeline([task("restore", end, phase="import")])] == ["succeeded", end]
    assert [stage.state for stage in pipeline([task(state=end, phase="")])] == [end, end]  # not told


def test_a_task_of_several_phases_has_one_bar_over_all_of_them_and_counts_of_one():
    (stage,) = pipeline(
        [task("prune", phase="prune: snapshots", total_bytes=0, done_bytes=0, total_files=8, done_files=2, whole=0.175)]
    )
    assert (stage.percent, stage.step, stage.eta_s) == (18, "2 / 8", None)
    (stage,) = pipeline([task("prune", phase="prune: rewrite", total_files=0, whole=0.45)])
    assert (stage.percent, stage.step, stage.done_bytes, stage.eta_s) == (45, "", 300, None)
    (stage,) = pipeline([task("prune", phase="prune: remove", total_bytes=0, total_files=3, done_files=3, whole=1)])
    assert stage.percent == 99  # until its end is known


def test_programs_get_the_share_of_the_whole():
    assert shown({"whole": 0.175, "total_bytes": 100, "done_bytes": 90, "rate_bytes_s": 1}) == (17.5, None)
    assert shown({"total_bytes": 100, "done_bytes": 90, "rate_bytes_s": 1}) == (90, 10)


def shown(figures):
    told = watching._derived(figures)
    return told["percent"], told["eta_s"]
