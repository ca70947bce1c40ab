"""The environment, read once, typed and loud. A variable ``X_FILE`` names a file that holds the value of ``X``."""

from __future__ import annotations

import os
from pathlib import Path


class BadEnvironment(SystemExit):
    """Raised at start: says which variable is wrong and what it should be."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"The environment variable {name} cannot be used: {why}")


def text(name: str, default: str = "") -> str:
    file = os.environ.get(f"{name}_FILE")
    if file:
        try:
            return Path(file).read_text().strip()
        except OSError as error:
            raise BadEnvironment(f"{name}_FILE", f"{file}: {error.strerror}") from error
    return os.environ.get(name, default)


def flag(name: str, default: bool = False) -> bool:
    value = text(name).lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    if value:
        raise BadEnvironment(name, f"“{value}” is not one of 1, 0, true, false, yes, no, on, off")
    return default


def number(name: str, default: float, *, least: float = 0) -> float:
    value = text(name)
    if not value:
        return default
    try:
        parsed = float(value)
    except ValueError:
        raise BadEnvironment(name, f"“{value}” is not a number") from None
    if parsed < least:
        raise BadEnvironment(name, f"{value} is less than {least}")
    return parsed


def words(name: str, default: list[str]) -> list[str]:
    value = text(name)
    return [word.strip() for word in value.split(",") if word.strip()] if value else default
