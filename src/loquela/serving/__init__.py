"""An OpenAI-compatible server for one model and its adapters, and the page that talks to it."""
