"""Google Cloud Storage's XML protocol, as far as a repository uses it, spoken by moto's S3 server.

That protocol is S3's in its verbs, paths, listings and errors. What differs is translated here: the bearer
token, and the condition that an object must not exist. It proves our wiring and the library's requests
against a server that stores; it does not prove what Google's own service does.

    python -m tests.contracts.gcs_stand_in PORT
"""

from __future__ import annotations

import sys
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

TOKEN = "Bearer a-secret-that-no-message-holds"
_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, Signature=x"


class Translator:
    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        given = environ.get("HTTP_AUTHORIZATION", "")
        if given not in (TOKEN, _SIGNED):
            start_response("401 Unauthorized", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AuthenticationRequired</Code><Message>Authentication required.</Message></Error>"]
        environ["HTTP_AUTHORIZATION"] = _SIGNED
        if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        return self._app(environ, start_response)


if __name__ == "__main__":
    application = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), Translator(application), threaded=True)
