"""What a brand can do: functions of an open session, and the brand's store where bytes move. No torch, no Ray.

The edge that opened the session commits; nothing here does.
"""
