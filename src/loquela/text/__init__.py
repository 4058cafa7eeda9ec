"""Text and tokens; no torch here."""
