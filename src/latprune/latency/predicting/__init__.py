"""Predicting: latency of layers that were never measured, from sweeps of random networks."""
