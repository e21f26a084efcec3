"""Makes the tiny bases of `onbrand.families.tiny`. Not installed; nothing in `onbrand` imports it."""
