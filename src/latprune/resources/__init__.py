"""What a budget limits: latency on a target, multiply-adds, parameters. Each knows its unit, its values and its cost terms."""

from latprune.resources.base import Resource
from latprune.resources.counted import MultiplyAdds, Parameters
from latprune.resources.latency import PredictedLatency, TabulatedLatency, UntabulatedLatency

__all__ = ["MultiplyAdds", "Parameters", "PredictedLatency", "Resource", "TabulatedLatency", "UntabulatedLatency"]
