"""Looking inside: attention, embeddings, next tokens, gradients; data first, figures from it."""
