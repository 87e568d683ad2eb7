"""Bridges fitted and measured on text."""
