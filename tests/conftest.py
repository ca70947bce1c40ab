"""What all tests share: the world of people and tenants, and folders that are not the installation's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings as django_settings


def pytest_configure(config: pytest.Config) -> None:
    # Static files come from the apps' own folders here; nothing is collected.
    config.addinivalue_line("filterwarnings", "ignore:No directory at:UserWarning")


def pytest_report_header() -> str:
    """Which database and broker the suite runs on; CI runs it on both pairs."""
    engine = django_settings.DATABASES["default"]["ENGINE"].rpartition(".")[2]
    broker = "redis" if django_settings.REDIS_URL else "memory"
    return f"brs: database {engine}, broker and channel layer {broker}"


@pytest.fixture(autouse=True)
def folders_of_its_own(settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the keys, certificates or spool of an installation in this checkout."""
    folder = tmp_path_factory.mktemp("brs")
    settings.DATA_DIR = folder
    settings.SPOOL_DIR = folder / "spool"
    settings.PKI_DIR = folder / "pki"
    yield folder


@pytest.fixture
def world(db):
    """Two tenants with one of everything, and their people: see tests/world.py."""
    from tests.world import make_world

    return make_world()
