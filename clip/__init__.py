"""From prompts and pictures to embeddings: the tokenizer, the Transformer, and the two towers of CLIP."""
