"""Tabulating: which networks to measure, and the surfaces that are fitted to what was measured."""
