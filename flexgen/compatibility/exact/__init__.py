"""Families of conditionals as tables and Gaussians: does a joint exist, which is closest, where do scans settle."""
