"""latprune: prune a PyTorch model to a latency budget on the engine that will run it."""

__version__ = "0.1.0"
