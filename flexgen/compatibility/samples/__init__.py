"""Draws and counts: tests of compatibility, and what an incompatibility does to the samples."""
