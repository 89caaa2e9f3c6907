"""The log as lines of JSON, for those who collect it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

__all__ = ["JSONLines"]


class JSONLines(logging.Formatter):
    """Writes each record as one JSON object: time, level, logger, message, and the fields that it has in `fields`.

    Of an exception it has the traceback, in one text. What clients send is in none of the server's records.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
