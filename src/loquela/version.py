"""The version, in a module so small that the build can read it without importing torch."""

VERSION = "0.1.0"
