"""Who runs a training job. Only `ray` is here; others keep the same three verbs."""
