"""The sections of a recipe, a module each: what a user can ask for.

A section is a model, strict about its keys, which also yields the JSON schema for editors; which of
its fields name donors or kinds; and what is wrong in it that its fields alone do not show.
"""
