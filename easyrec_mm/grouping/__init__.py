"""Grouping of flat logs, one row per impression, into grouped samples, and conversion between formats of these."""
