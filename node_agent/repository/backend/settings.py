"""What a store is told besides its address: options, and environment variables named as restic names them.

Secrets come in here and go nowhere else: not into ``Backend.url``, not into messages (``redacted``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from node_agent.errors import ConfigError

_USER_INFO = re.compile(r"(?<=://)[^/\s@]*@")
_QUERY = re.compile(r"(://[^\s?#]*)\?[^\s,)]*")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?(?:/s)?\Z", re.IGNORECASE)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def redacted(text: str) -> str:
    """The text without user names, passwords and query strings (which carry signatures) in its addresses."""
    return _QUERY.sub(r"\1?…", _USER_INFO.sub("***@", text))


def shown(text: str) -> str:
    """What a store said, fit for a message: short, on one line, without secrets."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:2000])
    return redacted(line)[:300]


class Settings:
    """The options of one store, asked for by name; ``sftp.port`` and ``port`` mean the same for an SFTP store."""

    def __init__(
        self, scheme: str, options: Mapping[str, str], env: Mapping[str, str], shared: Mapping[str, str] | None = None
    ) -> None:
        self.scheme = scheme
        self.env = env
        self._options = {name.removeprefix(f"{scheme}."): value for name, value in options.items()}
        self._shared = shared or {}  # options of which the kind of store need not know
        self._known: set[str] = set()

    def text(self, name: str, *variables: str) -> str | None:
        """The option, else the first of the variables that is set; None when nothing is."""
        self._known.add(name)
        given = self._options.get(name) or self._shared.get(name)
        return given or next((self.env[v] for v in variables if self.env.get(v)), None)

    def number(self, name: str, default: int, *, least: int = 0) -> int:
        given = self.text(name)
        if given is None:
            return default
        if not given.isdigit() or int(given) < least:
            raise ConfigError(f"The option {name} must be a whole number of at least {least}.", hint="Correct it.")
        return int(given)

    def flag(self, name: str) -> bool:
        given = (self.text(name) or "no").lower()
        if given not in ("yes", "true", "1", "no", "false", "0"):
            raise ConfigError(f"The option {name} must be yes or no.", hint="Correct it.")
        return given in ("yes", "true", "1")

    def content(self, name: str, *variables: str) -> str | None:
        """The text of the file that the option names; a certificate may also stand there itself."""
        given = self.text(name, *variables)
        if given is None or given.startswith("-----BEGIN"):
            return given
        try:
            return Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The file {given} ({name}) cannot be read: {error}.", hint="Check the path.") from error

    def given(self, *names: str) -> bool:
        """Whether any of these options is given; for those that the kind of store must refuse with a reason."""
        return any(name in self._options for name in names)

    def must_be_known(self) -> None:
        """To be called when everything was asked for: what is left was misspelt or belongs to another kind."""
        unknown = sorted(set(self._options) - self._known)
        if unknown:
            raise ConfigError(
                f"Stores of the kind {self.scheme} have no option {', '.join(unknown)}.",
                hint=f"There are: {', '.join(sorted(self._known))}.",
            )


def parse_size(text: str) -> int:
    """``2M`` as bytes, powers of 1024. ValueError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write for example 500K, 20M or 1G")
    return int(float(match[1]) * _FACTORS[match[2].lower()])
