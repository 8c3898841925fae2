"""Shared state of several replicas: Lua in .lua files, called through redis-py."""
