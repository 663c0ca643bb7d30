"""Metering: usage is durable before an answer leaves, and every answer is charged once."""

from tessera.server.metering.meter import Appended, Meter

__all__ = ["Appended", "Meter"]
