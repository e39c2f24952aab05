"""Implementations of treerl.search.sampler.Sampler, the token-in token-out continuation of many prefixes."""
