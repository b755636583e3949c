"""What a server's error says, and whether asking again can help."""


def reason_of(body: bytes) -> str:
    """A short line."""
    return " ".join(body[:200].decode(errors="replace").split())


def about_the_text(status: int, body: bytes) -> bool:
    """Whether the texts of the request are to blame."""
    return status in (400, 413, 422)


def is_final(status: int, body: bytes) -> bool:
    """Whether waiting does not help, whatever the status."""
    return b"insufficient_quota" in body
