"""Reading what Hugging Face published: configuration, shards, tokenizer. Nothing is executed."""
