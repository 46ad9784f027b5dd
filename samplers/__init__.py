"""Which query comes next, and the one loop that asks it: mask laws, schedules, Gibbs and any-order samplers."""

from __future__ import annotations
