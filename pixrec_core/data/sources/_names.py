"""Help for a name that is not there."""

import difflib
from collections.abc import Sequence


def known(name: str, names: Sequence[str]) -> str:
    """The names that there are, the close ones first where any is close, for an error message."""
    lower = {each.lower(): each for each in names}
    close = [lower[each] for each in difflib.get_close_matches(name.lower().replace(" ", "_"), lower, n=3)]
    hint = f"close: {', '.join(close)}; " if close else ""
    return f"{hint}known: {', '.join(names)}"
