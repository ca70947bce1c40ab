"""What the server refuses, as one tree; the bottom of the apps.

    DomainError          code, message, hint, status
    ├── Invalid          400  bad input
    ├── Unauthorized     401  no token, or one that is not known
    ├── Denied           403  may see it, may not do it
    ├── NotFound         404  does not exist, or may not be seen (the same to the asker)
    ├── Conflict         409  the object's state does not allow it
    │   └── LeaseLost    409  the fence: this token is not the task's any more
    ├── TooLarge         413
    ├── TooMany          429
    └── Unavailable      503  try again later
        └── Unsealable   503  a secret was sealed with another key

The faces (API, admin, node API) turn them into their own form; messages are plain sentences for the operator.
"""

from __future__ import annotations

from typing import ClassVar


class DomainError(Exception):
    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    default_message: ClassVar[str] = "Something went wrong on the server."
    default_hint: ClassVar[str] = "Look at the server's log for the details."

    def __init__(self, message: str | None = None, *, hint: str | None = None, code: str | None = None) -> None:
        self.message = message or self.default_message
        self.hint = self.default_hint if hint is None else hint
        self.error_code = code or self.code
        super().__init__(self.message)

    def as_dict(self) -> dict[str, str]:
        return {"code": self.error_code, "message": str(self.message), "hint": str(self.hint)}  # both may be lazy


class Invalid(DomainError):
    code = "invalid"
    status = 400
    default_message = "The request is not valid."
    default_hint = "Correct the named field and send it again."


class Unauthorized(DomainError):
    code = "unauthorized"
    status = 401
    default_message = "The token is missing or not known."
    default_hint = "Send a valid token in the header Authorization."


class Denied(DomainError):
    code = "denied"
    status = 403
    default_message = "You may not do this."
    default_hint = "Ask an owner of the tenant for a role that includes it."


class NotFound(DomainError):
    code = "not-found"
    status = 404
    default_message = "There is no such object."
    default_hint = "Check the address; it may have been deleted."


class Conflict(DomainError):
    code = "conflict"
    status = 409
    default_message = "The object's state does not allow this now."
    default_hint = "Reload it and look at its state."


class LeaseLost(Conflict):
    code = "lease-lost"
    default_message = "The task is no longer leased with this token."
    default_hint = "Stop the task; another run of it continues."


class TooLarge(DomainError):
    code = "too-large"
    status = 413
    default_message = "The request's body is too large."
    default_hint = "Send it in smaller pieces."


class TooMany(DomainError):
    code = "too-many"
    status = 429
    default_message = "Too many requests."
    default_hint = "Wait a minute and try again."


class Unavailable(DomainError):
    code = "unavailable"
    status = 503
    default_message = "The server cannot do this right now."
    default_hint = "Try again in a minute."


class Unsealable(Unavailable):
    code = "sealed-with-another-key"
    default_message = "A stored secret cannot be opened: it was sealed with another server key."
    default_hint = "Give the server the key it had before: BRS_SECRET_KEY, or the file secret.key in BRS_DATA_DIR."
