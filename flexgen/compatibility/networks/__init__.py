"""Trained networks: how far their answers are from those of one joint, with intervals, floors and a report."""
