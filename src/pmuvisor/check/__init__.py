"""Other readings of the semantics: compiled by numba, and symbolic for Z3."""
