"""Numbers and texts as the dashboard's data files hold them: scripts of one call, in which nothing can be markup."""

import base64
import json
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# JSON in ASCII leaves these as they are. A script element would end at "</script>" and change its meaning at "<!--".
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def script(name: str, content: Any) -> str:
    r"""A script that hands content to the page: ``Strata.put(name, content);``, in ASCII.

    Every character beyond ASCII is a ``\u`` escape, lone surrogates and the line ends U+2028 and U+2029 among them, and
    so are ``<``, ``>`` and ``&``. Texts of users stand in values only: as a key, ``"__proto__"`` would not be data.

    Args:
        name: as the page asks for it.
        content: what JSON knows, finite numbers only.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)
    return f"Strata.put({json.dumps(name).translate(_ESCAPES)},{text});\n"


def integers(values: Int[np.ndarray, " n"], *, n_bytes: int) -> str:
    """Whole numbers, each in so many bytes (2 or 4), little-endian, as base64."""
    assert len(values) == 0 or (values.min() >= 0 and values.max() < 256**n_bytes), "does not fit"
    return base64.b64encode(values.astype(f"<u{n_bytes}").tobytes()).decode("ascii")


def bytes_for(largest: int) -> int:
    """How many bytes a whole number up to `largest` takes: 2 or 4."""
    return 2 if largest < 2**16 else 4


def rounded(values: Float[np.ndarray, " n"], n_digits: int = 3) -> list[float | None]:
    """Numbers with so many significant digits; None for what is not finite."""
    wide = np.asarray(values, np.float64)
    there = np.isfinite(wide)
    size = np.abs(np.where(there & (wide != 0), wide, 1.0))
    places = np.clip(n_digits - 1 - np.floor(np.log10(size)), -300, 300).astype(int)
    return [round(value, place) if ok else None
            for value, place, ok in zip(wide.tolist(), places.tolist(), there.tolist(), strict=True)]  # fmt: skip
