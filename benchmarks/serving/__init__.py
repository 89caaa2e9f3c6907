"""Servers under load: what is sent to them, what is measured, and how each one is started."""
