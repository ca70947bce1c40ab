"""Celery runs the server's own chores (``apps.*.chores``): short, idempotent, nothing that a user waits for."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "brs.settings")

app = Celery("brs")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(related_name="chores")
