from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class BrsConfig(AppConfig):
    """Wires what belongs to no app: checks."""

    name = "brs"
    verbose_name = "BRS"

    def ready(self) -> None:
        from brs import celery, checks  # noqa: F401  chores must find the configured app; checks register


class BrsAdminConfig(AdminConfig):
    """Django's admin with our site in place of its own."""

    default_site = "brs.admin_site.BrsAdminSite"
