"""Storing: samples in SQLite, and their exchange between machines."""
