from django.apps import AppConfig


class BrsConfig(AppConfig):
    """Wires what belongs to no app: the admin site, checks."""

    name = "brs"
    verbose_name = "BRS"
