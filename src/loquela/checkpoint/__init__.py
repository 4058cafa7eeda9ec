"""Model directories: names, files, conversions."""
