"""Brands: each implements ports, none knows another."""
