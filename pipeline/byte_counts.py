"""Numbers of bytes as people write them: 50GiB, 2.5TB, 1000000."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_PREFIXES = "KMGT"
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_bytes(value: Any) -> Any:
    """Bytes of a text like '50GiB' (powers of 1024) or '50GB' (of 1000); other types as they are.

    Raises ValueError for another text."""
    if not isinstance(value, str):
        return value
    match = _PATTERN.fullmatch(value.strip())
    if match is None:
        raise ValueError("is not a number of bytes, such as 50GiB")
    number, prefix, binary = match.groups()
    power = 1 + _PREFIXES.index(prefix.upper()) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


ByteCount = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]
