"""The activation-aware method: weights fitted to what the ancestor computes."""
