"""The gateway: one OpenAI-compatible endpoint over a local, a cheap and a premium tier."""

__version__ = "0.1.0"
