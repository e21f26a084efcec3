"""Operations of a brand, on an open session and, where bytes move, on the brand's store.

Modules named `..._worker` are the system's side, called with a ticket. `api`, `background` and `training.dispatch`
import this package. No HTTP, no torch, no Ray; it never opens or commits a transaction.
"""
