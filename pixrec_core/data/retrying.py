"""Retries of HTTP requests: which failures to retry, and the waiting time."""

import random
from typing import Final

import urllib3

FIRST_WAIT_S: Final = 0.5  # before the first retry; doubled before each further one, and reduced at random
MAX_WAIT_S: Final = 60.0  # even if the server asks for a longer wait
TRANSIENT_CODES: Final = {408, 425, 429}  # and all 5xx


def is_transient(code: int) -> bool:
    """Return whether a request with this HTTP status may succeed if it is retried."""
    return code >= 500 or code in TRANSIENT_CODES


def retry_after(value: str | None) -> float | None:
    """Return the seconds in a `Retry-After` header, at most `MAX_WAIT_S`; None if it is missing or malformed."""
    try:
        return urllib3.Retry(retry_after_max=int(MAX_WAIT_S)).parse_retry_after(value) if value else None
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def wait_s(attempts: int, requested: float | None) -> float:
    """Return the seconds before the next attempt: `requested` by the server, else exponential backoff with jitter."""
    if requested is not None:
        return requested
    return min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempts - 1)) * random.uniform(0.5, 1)
