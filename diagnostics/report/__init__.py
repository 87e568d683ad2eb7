"""A diagnosis for the eye: terminal table, words, and one HTML page. No torch."""
