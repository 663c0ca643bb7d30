"""The version of the distribution; it lives in the client because every install has the client."""

__version__ = "0.1.0"
