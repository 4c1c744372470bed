"""Which HTTP failures to retry, and how long to wait before the next try."""

import random
from typing import Final

import urllib3

FIRST_WAIT_S: Final = 0.5  # before the second try; doubled before each further one, then reduced at random
MAX_WAIT_S: Final = 60.0  # of any wait, even if the server asks for more
TRANSIENT_CODES: Final = {408, 425, 429}  # and every 5xx


def is_transient(code: int) -> bool:
    """Whether a request with this HTTP status may succeed on another try."""
    return code >= 500 or code in TRANSIENT_CODES


def retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds of the `Retry-After` header, at most `MAX_WAIT_S`; None if it is absent or malformed."""
    try:
        return urllib3.Retry(retry_after_max=int(MAX_WAIT_S)).get_retry_after(response)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def wait_s(attempts: int, asked: float | None) -> float:
    """Seconds before the next try: what the server asked for, else exponential backoff with jitter."""
    if asked is not None:
        return asked
    return min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempts - 1)) * random.uniform(0.5, 1)
