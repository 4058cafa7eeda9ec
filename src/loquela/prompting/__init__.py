"""Prompts and the context window they must fit."""
