"""Archived months are Parquet files in a folder: written once, checked when written, read in pieces."""
