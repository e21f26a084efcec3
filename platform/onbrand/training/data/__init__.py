"""Training data of a run: pictures, captions, latents, text embeddings, random draws. No database, no Ray."""
