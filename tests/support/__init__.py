"""Helpers that several test rooms share; nothing here is a mock of our own code."""
