"""Django's settings. What differs between installations comes from the environment (see docs/install.md).

BRS_DATA_DIR       database, keys, certificates and spool of a standalone server (default: var/ beside manage.py)
BRS_PUBLIC_URL     https://host:port by which people and nodes reach the server
BRS_DATABASE_URL   postgresql://user:password@host:port/name; empty: SQLite in BRS_DATA_DIR
BRS_REDIS_URL      redis://host:port/0 as broker and channel layer; empty: both in the process
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.templatetags.static import static
from django.utils.translation import gettext_lazy as _

from brs import env

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(env.text("BRS_DATA_DIR", str(BASE_DIR / "var"))).resolve()
DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
SPOOL_DIR = Path(env.text("BRS_SPOOL_DIR", str(DATA_DIR / "spool")))
PKI_DIR = Path(env.text("BRS_PKI_DIR", str(DATA_DIR / "pki")))
DEBUG = env.flag("BRS_DEBUG")


def _secret_key() -> str:
    """The key that signs sessions and seals secrets: BRS_SECRET_KEY(_FILE), or one made once in BRS_DATA_DIR."""
    if key := env.text("BRS_SECRET_KEY"):
        return key
    file = DATA_DIR / "secret.key"
    if not file.exists():
        # Complete before it has its name: of two servers that start at once both must read the same key.
        fresh = DATA_DIR / f"secret.key.{os.getpid()}"
        with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as new:
            new.write(secrets.token_urlsafe(48))
        with suppress(FileExistsError):
            os.link(fresh, file)
        fresh.unlink()
    return file.read_text().strip()


def _hosts() -> list[str]:
    """This machine, by every name that it has for itself, and what BRS_PUBLIC_URL names."""
    own = [urlsplit(BRS_PUBLIC_URL).hostname or "", socket.gethostname().lower(), "localhost", "127.0.0.1", "[::1]"]
    return list(dict.fromkeys(name for name in own if name))


SECRET_KEY = _secret_key()
SECRET_KEY_FALLBACKS = env.words("BRS_SECRET_KEY_FALLBACKS", [])  # earlier keys: still open what they sealed
BRS_PUBLIC_URL = env.text("BRS_PUBLIC_URL", "https://localhost:8443").rstrip("/")
ALLOWED_HOSTS = env.words("BRS_ALLOWED_HOSTS", _hosts())
CSRF_TRUSTED_ORIGINS = env.words("BRS_TRUSTED_ORIGINS", [BRS_PUBLIC_URL])
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.flag("BRS_SECURE_COOKIES", True)
SESSION_COOKIE_HTTPONLY = True
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"

INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",  # the site is ours: brs.admin_site
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "unfold.contrib.guardian",
    "brs.apps.BrsAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "guardian",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_celery_beat",
    "channels",
    "apps.iam",
    "apps.inventory",
    "apps.policies",
    "apps.catalog",
    "apps.jobs",
    "apps.reports",
    "brs.apps.BrsConfig",  # last: re-registers admin pages of packages above
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "brs.headers.ContentPolicy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "brs.urls"
ASGI_APPLICATION = "brs.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


def _database() -> dict[str, object]:
    url = env.text("BRS_DATABASE_URL")
    if not url:
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DATA_DIR / "db.sqlite3",
            # IMMEDIATE: with the default two writers that began as readers end in "database is locked".
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
            },
            # Threads of one test share the database, so it must be a file.
            "TEST": {"NAME": Path(tempfile.gettempdir()) / f"brs-test-{os.getpid()}.sqlite3"},
        }
    parts = urlsplit(url)
    if parts.scheme not in {"postgresql", "postgres"}:
        raise env.BadEnvironment("BRS_DATABASE_URL", "it must begin with postgresql://")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "CONN_MAX_AGE": 0,
        "OPTIONS": {"pool": {"min_size": 0, "max_size": int(env.number("BRS_DATABASE_POOL", 20, least=2))}},
    }


DATABASES = {"default": _database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REDIS_URL = env.text("BRS_REDIS_URL")


def _channel_layer(redis_url: str) -> dict[str, object]:
    if not redis_url:
        return {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    # The layer waits 5 s at a time for a message, and the client's own limit is as long: whichever ended first, a
    # quiet stream would break every few seconds.
    host = {"address": redis_url, "socket_timeout": 30.0}
    return {"BACKEND": "brs.channel_layer.RedisChannelLayer", "CONFIG": {"hosts": [host]}}


CHANNEL_LAYERS = {"default": _channel_layer(REDIS_URL)}
CELERY_BROKER_URL = REDIS_URL or "memory://"
CELERY_BROKER_TRANSPORT_OPTIONS = {} if REDIS_URL else {"polling_interval": 0.1}
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_TIME_LIMIT = 300
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_TIMEZONE = "UTC"

AUTH_USER_MODEL = "iam.User"
AUTHENTICATION_BACKENDS = [
    "apps.iam.login.LimitedBackend",
    "guardian.backends.ObjectPermissionBackend",
]
GUARDIAN_RAISE_403 = False
ANONYMOUS_USER_NAME = None
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("vi", "Tiếng Việt")]
LOCALE_PATHS = [BASE_DIR / "locale"]
TIME_ZONE = "UTC"
USE_I18N = USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_MAX_AGE = 3600
FIXTURE_DIRS = [BASE_DIR / "fixtures"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

# How long a lease lasts without a word of its node; the margin that exclusive tasks keep on both sides.
BRS_LEASE_TTL_S = env.number("BRS_LEASE_TTL_S", 60, least=2)
BRS_LEASE_MARGIN_S = env.number("BRS_LEASE_MARGIN_S", 10, least=0)
BRS_SPOOL_QUOTA_BYTES = int(env.number("BRS_SPOOL_QUOTA_BYTES", 10 * 1024**3, least=1))
BRS_BODY_BYTES = 2 * 1024 * 1024  # largest body of any request but the node API's, which has its own limit
FILE_UPLOAD_MAX_MEMORY_SIZE = BRS_BODY_BYTES + 1  # so that no body is ever written to a temporary file
BRS_TRUSTED_PROXIES = env.words("BRS_TRUSTED_PROXIES", [])  # addresses whose X-Forwarded-For and -Proto are believed

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "apps.iam.tokens.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_FILTER_BACKENDS": [
        "django_filters.rest_framework.DjangoFilterBackend",
        "rest_framework.filters.SearchFilter",
        "rest_framework.filters.OrderingFilter",
    ],
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.LimitOffsetPagination",
    "PAGE_SIZE": 50,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "brs.api_errors.handle",
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "URL_FORMAT_OVERRIDE": None,  # ?format= would be a filter that nobody knows
    "NUM_PROXIES": 0,  # throttles count REMOTE_ADDR; else anybody could choose his address
    "DEFAULT_THROTTLE_RATES": {
        "user": env.text("BRS_API_RATE", "3000/min"),
        "anon": env.text("BRS_API_ANONYMOUS_RATE", "30/min"),
    },
}
SPECTACULAR_SETTINGS = {
    "TITLE": "BRS API",
    "DESCRIPTION": "Backup & Recovery System. Errors are {code, message, hint}; long work answers 202 with the job.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "SERVE_AUTHENTICATION": None,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "PlatformKindEnum": "apps.inventory.models.PlatformKind",
        "DestinationKindEnum": "apps.inventory.models.DestinationKind",
        "JobKindEnum": "apps.jobs.models.JobKind",
        "StateEnum": "apps.jobs.models.State",
        "NodeStateEnum": "apps.inventory.presence.NodeState",
        "RepositoryStateEnum": "apps.inventory.models.RepositoryState",
        "CopyStateEnum": "apps.catalog.models.CopyState",
        "ProtectionStateEnum": "apps.catalog.models.ProtectionState",
    },
}


UNFOLD = {
    "SITE_TITLE": "BRS",
    "SITE_HEADER": "BRS",
    "SITE_SUBHEADER": _("Backup & Recovery"),
    "SITE_SYMBOL": "shield",
    "SITE_URL": None,  # there is no other site to return to
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": True,
    "BORDER_RADIUS": "8px",
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.6)",
            "100": "oklch(93.2% .032 255.6)",
            "200": "oklch(88.2% .059 254.1)",
            "300": "oklch(80.9% .105 251.8)",
            "400": "oklch(70.7% .165 254.6)",
            "500": "oklch(62.3% .214 259.8)",
            "600": "oklch(52% .2 262.9)",
            "700": "oklch(46% .2 264.4)",
            "800": "oklch(42.4% .199 265.6)",
            "900": "oklch(37.9% .146 265.5)",
            "950": "oklch(28.2% .091 267.9)",
        },
    },
    "SIDEBAR": {"show_search": True, "command_search": True, "navigation": "brs.admin_site.navigation"},
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda _request: static("brs/favicon.svg")}],
    "STYLES": [lambda _request: static("brs/brs.css")],
    "SCRIPTS": [lambda _request: static("brs/live.js")],
    "DASHBOARD_CALLBACK": "apps.reports.dashboard.context",
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": env.text("BRS_LOG_LEVEL", "INFO")},
    "loggers": {
        "httpx": {"level": "WARNING"},
        # The ticks of every ten seconds; a chore that fails is told all the same.
        "celery.app.trace": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
    },
}
