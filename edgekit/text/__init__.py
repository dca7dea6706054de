"""Text around the model: tokenizer, chat template, reasoning, stop strings."""
