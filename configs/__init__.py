"""Commented configurations and the demo model, as package data."""
