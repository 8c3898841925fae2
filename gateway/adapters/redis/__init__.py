"""Shared state of several workers and hosts: Lua in .lua files, called over one connection of each worker."""
