"""The command ``flexgen``: builds objects from configs/ and runs the jobs on files."""

from __future__ import annotations
