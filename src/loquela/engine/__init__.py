"""How it runs fast: a compiled decoder behind the same `Network` that everything else calls."""
