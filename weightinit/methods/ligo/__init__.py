"""LiGO: growth operators that are learned."""
