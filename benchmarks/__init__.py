"""Figures of speed and quality, each beside a peer's in the same run; see README.md in this folder."""
