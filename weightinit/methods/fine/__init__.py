"""FINE: factorised weights whose diagonal is learned."""
