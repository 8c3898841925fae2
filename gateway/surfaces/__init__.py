"""Client-facing APIs, pure: parse, render, stream translation, error envelope."""
