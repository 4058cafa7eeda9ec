"""The command line: one short file per verb, imported only when called."""
