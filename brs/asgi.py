"""The server's entry for ASGI: limits first, then nodes, live messages, or everything else.

The nodes' API stands beside Django, not in it: a thousand long polls must hold neither threads nor connections.
"""

from __future__ import annotations

import os
import warnings

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "brs.settings")
_pages = get_asgi_application()  # sets Django up, so it comes before the imports below

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.conf import settings  # noqa: E402

from apps.jobs import consumers, node_api  # noqa: E402
from brs.limits import BodyLimit, Receive, Scope, Send  # noqa: E402
from node_agent import protocol  # noqa: E402

# WhiteNoise answers with plain iterators; its files are small, so that reading them whole does no harm. Django tells
# it once a process, for whoever streams something large that way: downloads do not.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")

NODES = protocol.PREFIX.rpartition("/")[0] + "/"  # "/api/node/", whatever the version

_live = AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(consumers.urlpatterns)))


def _limit_of(path: str) -> int:
    return protocol.BODY_BYTES if path.startswith(NODES) else settings.BRS_BODY_BYTES


async def _route(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await _live(scope, receive, send)
    elif scope["path"].startswith(NODES):
        await node_api.application(scope, receive, send)
    else:
        await _pages(scope, receive, send)


application = BodyLimit(_route, _limit_of)
