"""Guests that come with pmuvisor, as sources and as the binaries built from them (data, no code)."""
