"""Small models of the benchmarks, each beside its twin in the language of the peer."""
