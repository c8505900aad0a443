"""The key that wraps the keys of what is stored: 32 random bytes in a private file of its own, apart from the store."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.security.files import SettingError, create_private, naming, read_file

KEY_BYTES: Final = 32
_SETTING: Final = "storage.key_file"


def load_storage_key(path: Path, *, store_exists: Callable[[], bool]) -> bytes:
    """The key in that file (64 hexadecimal digits), made with mode 0600 where there is none. Blocking.

    `store_exists` is asked where the file is missing, before one is made; what it raises passes through. Raises
    SettingError; also where the file is missing though the store exists: another key could read nothing of it.
    """
    with naming(_SETTING, "read"):
        missing = not path.exists()
    if missing:
        if store_exists():
            raise SettingError(_SETTING, "must be the key that the database was made with; the file is missing")
        with naming(_SETTING, "written"):
            create_private(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode())
    data, _ = read_file(path, _SETTING, private=True)
    try:
        key = bytes.fromhex(data.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingError(_SETTING, f"must hold {2 * KEY_BYTES} hexadecimal digits that the sidecar wrote")
    return key
