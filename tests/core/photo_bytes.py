"""Photos with faults."""


def with_size(jpeg: bytes, side: int) -> bytes:
    """Return a JPEG whose header claims a width and a height of `side` pixels."""
    start = jpeg.index(b"\xff\xc0") + 5  # of the frame: marker, length, precision, then height and width
    return jpeg[:start] + 2 * side.to_bytes(2, "big") + jpeg[start + 4 :]
