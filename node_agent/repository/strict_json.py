"""JSON from a store, which may be damaged or hostile: whatever is wrong with it is a ValueError.

As Go reads it: UTF-8 only, no NaN and no infinity. Python itself guesses UTF-16, takes ``NaN``, and answers deep
nesting with RecursionError.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse_json(content: bytes) -> Any:
    """Raises ValueError. Numbers of more than 4,300 digits are refused as well (Python's own limit)."""
    try:
        return _decoder.decode(str(content, "utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is too large")
    return number


_decoder = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
