"""API tokens (to be completed)."""
