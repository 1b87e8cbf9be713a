"""Hashes that do not depend on the process: of configurations (identity of a run) and of names (random streams)."""

import hashlib
import json
from typing import Any


def digest(value: Any, length: int = 16) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of the order of keys and of the process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def name_id(name: str) -> int:
    """A 31-bit integer from a name, to be folded into a random key, so that each purpose has a separate stream."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") & 0x7FFFFFFF
