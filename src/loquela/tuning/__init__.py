"""Tuning: from a model and examples to a model that does the task, with an account of what it cost."""
