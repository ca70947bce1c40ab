"""What all words of the wire have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

API_VERSION = 1
PREFIX = "/api/node/v1"
PIECE_BYTES = 4 * 1024 * 1024  # largest piece of a download or of a list of directories
BODY_BYTES = 8 * 1024 * 1024  # largest body of any node request
LEASE_TOKEN_HEADER = "X-Lease-Token"
LIST_KEEP = 1000  # left-out items that travel with a result; all are counted


Bytes = Annotated[int, Field(ge=0, lt=2**63)]  # what a database can keep


class Wire(BaseModel):
    # hide_input_in_errors: a body that cannot be read may hold passwords, and errors end up in logs.
    # NaN and infinity are no JSON, and no database keeps them.
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class ErrorBody(Wire):
    code: str
    message: str
    hint: str = ""


class Ack(Wire):
    ok: Literal[True] = True
