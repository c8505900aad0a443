"""The README's code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

README: Final = Path(__file__).resolve().parents[3] / "clients" / "web" / "README.md"
BLOCKS: Final = re.findall(r"^```js\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block(part: str) -> str:
    """The one block with that in it, as it is written."""
    (text,) = [text for text in BLOCKS if part in text]
    return str(text)
