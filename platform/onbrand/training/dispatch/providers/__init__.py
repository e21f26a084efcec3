"""Providers, which run training jobs. Only `ray` exists; others implement `provider.Provider`."""
