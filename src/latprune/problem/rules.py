"""The error that a broken rule of the problem format raises: it knows the place of the offending value."""

from __future__ import annotations

from latprune.errors import InvalidArgumentError

__all__ = ["ProblemError", "join_path"]


def join_path(prefix: str, suffix: str) -> str:
    """``suffix`` placed under ``prefix``: ``costs[0]`` and ``terms[3].table`` give ``costs[0].terms[3].table``."""
    if not prefix or not suffix:
        return prefix or suffix
    return f"{prefix}{suffix}" if suffix.startswith("[") else f"{prefix}.{suffix}"


class ProblemError(InvalidArgumentError):
    """A value of a problem or solution breaks a rule.

    Attributes:
        path: Place of the value, in the words of the file format (``costs[0].terms[3].table``).
        rule: The message without the path.
    """

    def __init__(self, rule: str, *, path: str) -> None:
        super().__init__(f"{path}: {rule}" if path else rule)
        self.path = path
        self.rule = rule

    def under(self, prefix: str) -> ProblemError:
        """The same error seen from an enclosing object."""
        return ProblemError(self.rule, path=join_path(prefix, self.path))
