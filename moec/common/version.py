"""The version of moec, which artifacts and cached results name."""

from __future__ import annotations

VERSION = "0.1.0"
