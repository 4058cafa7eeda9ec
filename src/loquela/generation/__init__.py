"""From logits to tokens to text: one sampler, one decode loop."""
