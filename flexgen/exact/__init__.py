"""Families whose conditionals are known in closed form: ground truth, and conditionals in their own right."""

from __future__ import annotations
