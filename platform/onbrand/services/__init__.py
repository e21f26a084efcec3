"""Operations of a brand, on an open session and, where bytes move, on the brand's store. No torch, no Ray.

The caller that opened the session commits; these functions do not.
"""
