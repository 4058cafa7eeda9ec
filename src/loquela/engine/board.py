"""Numbers that the crew and those who give it work agree on: codes of operations, and words of the board."""

from __future__ import annotations

__all__ = [
    "ACTIVATE", "ADAPT_SLOTS", "ADD", "ANGLES", "ATTEND", "BLOCKS", "COLUMNS", "COMBINE", "EMBED", "ENDS",
    "EXPERTS", "GATHER", "GLANCE", "JOIN", "LIFT", "LOW", "LOWER", "LOW_STRIDE", "MEMORY", "MULTIPLY", "NORM",
    "N_BLOCKS", "N_SPANS", "PAGES", "PLACE", "POSITIONS", "QUANTISE", "ROTATE", "ROUTE", "SCALE", "SCALE_SLOTS",
    "SCRATCH", "SCRATCH_STRIDE", "SPANS", "TOKENS", "VECTORS",
]  # fmt: skip

EMBED, NORM, QUANTISE, MULTIPLY, ROTATE, ATTEND, ACTIVATE, LOWER, LIFT, SCALE, ADD = range(1, 12)
PLACE, ROUTE, GATHER, EXPERTS, COMBINE, GLANCE, JOIN, ADAPT_SLOTS, SCALE_SLOTS = range(12, 21)
COLUMNS = 16
"""Numbers of an operation, the first of them its code."""

TOKENS, POSITIONS, PAGES, BLOCKS, N_BLOCKS, ANGLES, SCRATCH, SCRATCH_STRIDE = range(24, 32)
"""Words that a caller sets: addresses of each token's id, position and page table; of blocks (first token, count)."""
SPANS, N_SPANS, LOW, LOW_STRIDE, VECTORS = range(32, 37)
"""Of spans of tokens that wear one adapter (first token, count, table); of their thin rows; of vectors that are given
in place of an embedding (an address for each token, 0 for none)."""
MEMORY, ENDS = 37, 38
"""Addresses of each token's page table of an encoder's output; of the last position there, or of its own text."""
