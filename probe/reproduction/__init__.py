"""Published numbers beside ours: the protocol of von Oswald et al. 2023 on their checkpoints."""

from probe.reproduction.records import Reproduction, Row, Summary
from probe.reproduction.report import summarise
from probe.reproduction.run import reproduce

__all__ = ["Reproduction", "Row", "Summary", "reproduce", "summarise"]
