"""Hypernetworks: a graph of the target, an encoder, decoders: GHN-3, LoGAH, TAL and PITH."""
