"""From logits to text: the rules of sampling, the decode loop, completions."""
