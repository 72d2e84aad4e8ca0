"""Answers on disk, so that an interrupted run asks nothing twice."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strata.errors import UserError
from strata.interpret.prompted.completer import AnswerToken, Reply

_LOOKED_UP_AT_ONCE = 500  # SQLite takes at least 999 variables in one statement


class RequestCache:
    """Answers by the SHA-256 of what was asked, in an SQLite file. Each is safe once `put` returns, also from a kill.

    Several processes may share the file.

    Args:
        path: of the file, made if need be with its folder; ``":memory:"`` keeps the answers in this process.

    Raises:
        UserError: it is no SQLite file, or cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        try:
            if path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            # One thread at a time uses it, though not always the one that made it.
            self._database = sqlite3.connect(path, timeout=60.0, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    @staticmethod
    def key(asked: dict[str, Any]) -> str:
        """The name of an answer: SHA-256 of the request's canonical JSON (sorted keys, no spaces), in hexadecimal."""
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The answers that are there.

        Raises:
            UserError: the file cannot be read.
        """
        wanted = list(keys)
        found: dict[str, Reply] = {}
        try:
            for start in range(0, len(wanted), _LOOKED_UP_AT_ONCE):
                part = wanted[start : start + _LOOKED_UP_AT_ONCE]
                query = f"SELECT key, reply FROM answers WHERE key IN ({','.join('?' * len(part))})"
                found |= {key: _reply(json.loads(text)) for key, text in self._database.execute(query, part)}
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return found

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer.

        Raises:
            UserError: the file cannot be written.
        """
        kept = {
            "text": reply.text,
            "tokens": [[token.start, token.text, dict(token.probabilities)] for token in reply.tokens],
            "blanks": [dict(blank) for blank in reply.blanks],
        }
        text = json.dumps(kept, separators=(",", ":"))
        try:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"The cache of answers must be an SQLite file that can be written. {self._path}: {error}. Delete it, make"
            f" room, or give another."
        )


def _reply(kept: dict[str, Any]) -> Reply:
    tokens = tuple(AnswerToken(start, text, probabilities) for start, text, probabilities in kept["tokens"])
    return Reply(text=kept["text"], tokens=tokens, blanks=tuple(kept["blanks"]))
