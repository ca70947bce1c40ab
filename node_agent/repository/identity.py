"""Who this process is, for the files that say who wrote them."""

from __future__ import annotations

import os
import pwd


def username() -> str:
    """The name of the process's user; its number where no such user is known, as in many containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
