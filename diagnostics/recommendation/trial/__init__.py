"""Placements assembled in memory and measured beside their controls."""
