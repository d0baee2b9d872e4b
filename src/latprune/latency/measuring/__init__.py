"""Measuring: the interleaved protocol, scenarios, and networks of chosen widths run in place, layer by layer."""
