"""Measurements in a file, a line of JSON each, from which an interrupted search goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting


class Journal:
    """Measurements by name, appended to a file (None: in memory only).

    header: all that they depend on. InvalidSetting, with what differs, for a file with another header.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.path = path
        self.known: dict[str, list[float]] = {}
        header = json.loads(json.dumps(header))
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        if lines and path is not None:
            self._read(path, lines, header)
        elif path is not None:
            path.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def _read(self, path: Path, lines: list[str], header: dict[str, Any]) -> None:
        try:
            found = json.loads(lines[0])
            entries = [json.loads(line) for line in lines[1:-1]]
        except ValueError as error:
            raise InvalidSetting(f"{path} is not a file of trials ({error}). Move it away to start afresh.") from error
        if found != header:
            other = [name for name in header if not isinstance(found, dict) or found.get(name) != header[name]]
            raise InvalidSetting(
                f"{path} is from another calibration (not the same: {', '.join(other) or 'its form'}). Move it away to "
                "start afresh, or use the same arguments to go on with it."
            )
        if len(lines) > 1:
            try:
                entries.append(json.loads(lines[-1]))
            except ValueError:  # cut off by an interruption: measured again
                path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
        self.known = {entry["of"]: entry["is"] for entry in entries}

    def add(self, name: str, values: list[float]) -> None:
        """Add a measurement."""
        self.known[name] = values
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"of": name, "is": values}) + "\n")
