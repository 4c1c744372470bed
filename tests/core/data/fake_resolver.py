"""Addresses of host names for libcurl, as a resolver would give them, without a network."""

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import pycurl
import pytest

from pixrec_core.data import fetching


def resolves(monkeypatch: pytest.MonkeyPatch, names: Mapping[str, list[str] | Callable[[], list[str]]]) -> None:
    """Resolve some names for each request; a function is asked each time, so that a name can change its addresses."""

    class Resolving(pycurl.Curl):
        def perform(self):
            parts = urlsplit(self.url)
            key = f"{parts.hostname}:{parts.port or 80}"
            found = names.get(parts.hostname.rstrip("."))
            if found:
                addresses = found() if callable(found) else found
                super().setopt(pycurl.RESOLVE, [f"-{key}", f"{key}:{','.join(addresses)}"])
            return super().perform()

        def setopt(self, option, value):
            if option == pycurl.URL:
                self.url = value
            super().setopt(option, value)

    monkeypatch.setattr(fetching.pycurl, "Curl", Resolving)
