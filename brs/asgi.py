"""ASGI entry (to be completed)."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "brs.settings")
application = get_asgi_application()
