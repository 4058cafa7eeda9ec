"""One file per picture; see `loquela.inspection.picture`."""
