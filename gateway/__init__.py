"""A self-hosted gateway to Kimi's thinking models: routed by price, metered exactly, failed over by itself."""

__version__ = "0.1.0"
